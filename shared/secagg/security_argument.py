"""The secure sum: many platforms add their vectors, and the coordinator learns the sum and nothing else.

Double masking with secret-shared seeds (Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine
learning"), on a ring of neighbours where platforms are many (Bell et al. 2020), with keys and shares for all rounds of a
run dealt once. Platform i sends in round r

    y_i = x_i + PRG(b_i) + sum over partners j > i of PRG(s_ij) - sum over partners j < i of PRG(s_ij)     (mod 2^bits)

where b_i is its seed of the round and s_ij comes from X25519 of both platforms' mask keys of the round. PRG denotes a key
derivation and a stream: HKDF-SHA256 with the session's digest and the *frame* of the round, then AES-256-CTR. The frame names the
round, the vector's length and width, and the digest of the question that the vector answers: every field of the request (adapter,
factors, settings, round) and what its answers depend on from before: the popularities that platforms were told, and the question
of the round whose items' vectors serve (`shared/protocol/question.py`, `messages.Before`). Each platform's mask key sk_i and seed
b_i of every round are dealt beforehand as Shamir shares to its neighbours and to itself, its *holders*. For a survivor its
holders give shares of b_i; for one that is gone, shares of sk_i.

Phases of a round: `mask`; if somebody is missing, `confirm`; `unmask`. So two without dropouts, three with. The platform's
side is `client/secagg/enrolment.py` and `client/secagg/participant.py`, the coordinator's `strategies/secure_sum/protocol.py` and
`strategies/secure_sum/masked_sum.py`; what both must have the same is here. None of it touches a disk or a network.

Threat model
============
The coordinator may do anything: read all, drop, delay, repeat and invent messages, tell different platforms different things
about who takes part and who dropped out, send them different models, ask in any order. Up to c platforms (`Terms.colluders`)
are its accomplices from the start: they tell it all their secrets and say what it likes. The other platforms are honest: they
follow the protocol, and keep their state (a platform restored from an older copy of its disk counts as an accomplice). Every
platform knows the identity keys of the others from its own operator (`peers`), not from the coordinator. Assumed: X25519 with
HKDF-SHA256 gives keys that look random, independent for different salts and infos; AES-256-CTR is a PRG; ChaCha20-Poly1305 is
an AEAD; Ed25519 cannot be forged; SHA-256 is collision-free and, on 256 random bits, hides them. Keys of small order, with
which X25519 gives everybody the same secret, are no keys here (`Keys`): they are refused where they arrive, before anything
is charged.

*Not* promised: that the sum is right or comes at all. The coordinator can refuse to work, and an accomplice can add what it
likes. (One platform's wrong shares are noticed, and worked around where enough others are there.) Nor that the members of a
sum contribute alike: the question is the same, but what a platform keeps from earlier rounds (local parameters, a B that
never leaves) is its own, and a coordinator influences it by whom it asks in which round. The noise is what protects a user
within the sum.

Claim
=====
With n platforms on the roster, c accomplices, threshold t, votes q, degree k and share threshold t' as `Quorum` guarantees
them: 2 q > n + c, t >= q, 2 t' > k + 1 + c, and k = n - 1 (complete) or k > n - t + c (ring).

**In each round the coordinator and its accomplices learn of the honest platforms' vectors at most the sum over one set of
them, of at least t - c members, all of which answered one and the same question.** So a sum that is learned is one of gradients
at the same adapter, in the same round, under the same settings. What they learn of one round says nothing of another.

So the noise must be sized for t - c honest shares (`Quorum.honest`). With a coordinator that does not lie, fewer than t'
accomplices see nothing but the sum over the survivors, whatever c was declared. None of this rests on chance: where the
platforms are on the ring matters only for how many dropouts a round outlives (`shared/secagg/quorum.py`).

Argument
========
Fix a roster R. Its digest goes into every sealed share, every mask key and every signature. A platform deals its secrets to
one roster and only once, so shares that honest platforms dealt to R are held by those who hold R.

1. *One session.* A session is R with a list D of those present; its digest goes into every mask key, too. An honest platform
   consents to one session in a run, and gives shares only in its own, after q consents to it. If honest platforms gave
   shares in two sessions of R, then at least 2 q consents were given, one by each of at most n - c honest ones and at most two by
   each of c others: 2 q <= n + c, a contradiction. Let D be the list of the only session in which shares are given.

2. *One list.* In a round an honest platform signs, or answers for, one list of survivors at most, one of at least t members of
   D. For a list other than D itself it answers only when q members signed it. By the count of step 1 there is at most one such
   list U in the round; and whoever answered for D did not sign U.

3. *Never both.* For an honest j not both sk_j and b_j get out. Shares of sk_j are given only by those who answer for U, and only
   if j is not in U. If j is not in U, shares of b_j are given only by those who answer for D. No honest holder does both, so both
   secrets getting out takes 2 t' <= (k + 1 - c_j) + 2 c_j <= k + 1 + c, where c_j <= c of j's k + 1 holders are accomplices: a
   contradiction. If j is in U, shares of sk_j are not given at all. Moreover b_j gets out only if j consented to this session:
   each honest holder checks that of j itself.

4. *Hidden vectors.* Let Z be the honest platforms whose sk got out, and V the other honest members of D. For j in Z, PRG(b_j)
   hides y_j wholly (step 3). A platform masks one vector in a round, so it answers one question, Q_j. Call i and j of V
   neighbours *in agreement* if Q_i = Q_j, and join them by an edge: the mask of an edge did not get out, since neither sk
   did, and members that consented to the session have added it, with opposite signs. If Q_i is not Q_j, their digests differ
   (SHA-256), and i added PRG(s_ij, Q_i) and j added PRG(s_ij, Q_j): two independent masks that did not get out, each of which
   appears in one vector alone. Take a connected part K of V along the edges. If the seed of any member of K did not get out,
   or any member has a neighbour in V that answered another question, then all vectors of K are hidden: its own by its seed,
   or by the mask that it alone carries; its neighbours' by the mask they have with it, which appears in no other vector that
   is not hidden already; and so on along the edges. (A member that consented to another session is such a one.) If all seeds
   of K got out and K borders on no other question, the masks along a spanning tree of K make the y of K uniformly random but
   for their sum. So of K only the sum of its x is learned, or nothing.

5. *One sum, of one question.* V is connected by the relation of being neighbours. So if its members answered different
   questions, each part K of step 4 borders on another, and nothing is learned; if they answered the same, V is one part. That
   V is connected: the complete case is clear. On the ring, cut V into two parts without neighbours between them: going round,
   one passes from a member of one part to a member of the other at least twice, each time over a gap of at least k/2
   platforms that are not in V (nearer ones are neighbours). The gaps do not overlap, so at least k platforms are outside V.
   But whoever is outside V is an accomplice, or not in D, or in Z. If there is a list U, the latter two are outside U, so
   there are at most n - t of them (Z is outside U by step 3); if there is none, Z is empty, and at most n - t are not in D.
   So k <= n - t + c, a contradiction.

6. *Large enough.* V holds the honest members of U, or, where there is no U, those of D. Both lists have t members at least.

*Rounds apart.* The mask keys and seeds of a round, and the coefficients that share them, are drawn by themselves; the only
thing that rounds have in common is the identity key, the sealing key and the list D. So whatever gets out of one round is
independent of another's secrets. A platform masks one vector in a round, in rising rounds, and forgets a round's secrets when it
masks a later one.

*Late answers.* The coordinator may call a platform lost and get its y_j later: that is j in Z of step 4.
"""
