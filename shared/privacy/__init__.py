"""Privacy arithmetic: what is released, what it costs, and how much noise a budget asks for.

`releases` is the algebra, `groups` says what one user touches, `rdp`, `prv` and `pld` are three
interpreters of the same releases, `accountants` chooses between them, `calibration` inverts them
and `plan` decides before the first round. `integers` is the part of a release that a secure sum adds,
`rounding` says how far a user moves rounded integers, and `discrete` which Gaussian mechanism their
noise is worth. Nothing here sees data.
"""
