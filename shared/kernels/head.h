// Softmax attention of one head over one sequence (Vaswani et al. 2017), and its way back; all of it fits a core's cache.
#pragma once

#include "blocks.h"

#include <cmath>
#include <limits>

namespace fedfuse {

struct Head {
  int64_t t, d;  // tokens, and the head's width: 16, 32, 48 or 64
  int64_t tp = padded(t);

  // Queries, keys and values are (t, d), rows of ld numbers; bias (tp) is 0 where a token may be attended to, else -inf.
  // Gives shares (t, tp) = softmax(q k^T / sqrt d + bias), and out (t, d) = shares v, rows of ld_out numbers.
  void forward(const half* q, const half* k, const half* v, int64_t ld, const float* bias, half* shares, half* out,
               int64_t ld_out) const {
    float* s = scores(t * tp);
    by_columns(q, ld, k, ld, s);
    const __m512 factor = _mm512_set1_ps(1.4426950408889634f / std::sqrt(static_cast<float>(d)));  // log2 e: powers are of two
    for (int64_t r = 0; r < t; ++r) {
      float* row = s + r * tp;
      __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < tp; i += LANES) {
        const __m512 x = _mm512_fmadd_ps(_mm512_loadu_ps(row + i), factor, _mm512_loadu_ps(bias + i));
        _mm512_storeu_ps(row + i, x);
        most = _mm512_max_ps(most, x);
      }
      const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
      for (int64_t i = 0; i < tp; i += LANES) {
        const __m512 e = exponential2(_mm512_sub_ps(_mm512_loadu_ps(row + i), top));
        _mm512_storeu_ps(row + i, e);
        sum = _mm512_add_ps(sum, e);
      }
      const __m512 share = _mm512_set1_ps(1.f / _mm512_reduce_add_ps(sum));
      for (int64_t i = 0; i < tp; i += LANES) store(shares + r * tp + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), share));
    }
    by_rows(shares, v, ld, out, ld_out);
  }

  // With P the shares: dv = P^T do, dS = P (do v^T - rowsum(P do v^T)) / sqrt d, dq = dS k, dk = dS^T q; null if not asked for.
  void back(const half* out, int64_t ld_out, const half* q, const half* k, const half* v, int64_t ld, const half* shares, half* dq,
            half* dk, half* dv) const {
    thread_local Scratch<half> exchanged, plain;
    half *turned = exchanged.of(t * tp), *slopes = plain.of(t * tp);
    if (dv) {
      turn(turned, [&](int64_t r, int64_t i) { return load(shares + r * tp + i); });
      by_rows(turned, out, ld_out, dv, ld);
    }
    if (!dq && !dk) return;
    float* s = scores(t * tp);
    by_columns(out, ld_out, v, ld, s);
    const __m512 factor = _mm512_set1_ps(1.f / std::sqrt(static_cast<float>(d)));
    for (int64_t r = 0; r < t; ++r) {
      float* row = s + r * tp;
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < tp; i += LANES) sum = _mm512_fmadd_ps(_mm512_loadu_ps(row + i), load(shares + r * tp + i), sum);
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
      for (int64_t i = 0; i < tp; i += LANES) {
        const __m512 share = _mm512_mul_ps(load(shares + r * tp + i), factor);
        const __m512 x = _mm512_mul_ps(share, _mm512_sub_ps(_mm512_loadu_ps(row + i), mean));
        _mm512_storeu_ps(row + i, x);
        store(slopes + r * tp + i, x);
      }
    }
    if (dq) by_rows(slopes, k, ld, dq, ld);
    if (!dk) return;
    turn(turned, [&](int64_t r, int64_t i) { return _mm512_loadu_ps(s + r * tp + i); });
    by_rows(turned, q, ld, dk, ld);
  }

 private:
  // s (t, tp) = a b^T, both (t, d)
  void by_columns(const half* a, int64_t lda, const half* b, int64_t ldb, float* s) const {
    thread_local Scratch<half> held;
    half* turned = held.of(tp * d);
    for (int64_t column = 0; column < tp; column += 64) {
      const int64_t width = std::min<int64_t>(64, tp - column);
      half* block = turned + column * d;
      pack_turned(b + column * ldb, ldb, t - column, d, width, block);
      brgemm(t, width, d, lda, width, tp, false, a, block, s + column);
    }
  }

  // out (t, d) = a (t, tp) b, with b (t, d)
  void by_rows(const half* a, const half* b, int64_t ldb, half* out, int64_t ld_out) const {
    thread_local Scratch<half> held;
    thread_local Scratch<float> products;
    half* paired = held.of(tp * d);
    float* c = products.of(t * d);
    pack_rows(b, ldb, tp, t, d, d, paired);
    brgemm(t, d, tp, tp, d, d, false, a, paired, c);
    for (int64_t r = 0; r < t; ++r)
      for (int64_t i = 0; i < d; i += LANES) store(out + r * ld_out + i, _mm512_loadu_ps(c + r * d + i));
  }

  // to (t, tp): row and column exchanged; of(r, i) gives sixteen of row r from column i on.
  template <typename Of>
  void turn(half* to, const Of& of) const {
    for (int64_t r = 0; r < tp; r += LANES)
      for (int64_t c = 0; c < tp; c += LANES) {
        __m512i rows[16];
        for (int64_t i = 0; i < LANES; ++i) rows[i] = r + i < t ? _mm512_castps_si512(of(r + i, c)) : _mm512_setzero_si512();
        transpose(rows);
        for (int64_t i = 0; i < std::min(LANES, t - c); ++i) store(to + (c + i) * tp + r, _mm512_castsi512_ps(rows[i]));
      }
  }

  static float* scores(int64_t size) {
    thread_local Scratch<float> held;
    return held.of(size);
  }
};

}  // namespace fedfuse
