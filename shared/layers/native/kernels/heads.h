// Softmax attention of the heads of one sequence (Vaswani et al. 2017), and its way back.
//
// A few heads at a time take each step together: the matrix unit is set up anew for every other shape of a product.
#pragma once

#include "blocks.h"

#include <cmath>
#include <limits>

namespace fedfuse {

class Heads {
 public:
  // Tokens, heads, and the width of each: 16, 32, 48 or 64.
  Heads(int64_t t, int64_t heads, int64_t d)
      : t_(t), heads_(heads), d_(d), tp_(padded(t)), group_(std::clamp<int64_t>(CACHED / (t * tp_), 1, heads)) {}

  // parts (t, 3 h): queries, keys and values side by side; bias (tp) is 0 where a token may be attended to, else -inf.
  // Gives each head's shares (t, tp) = softmax(q k^T / sqrt d + bias) in shares (heads, t, tp), and shares v in out (t, h).
  void forward(const half* parts, const float* bias, half* shares, half* out) const {
    const int64_t h = heads_ * d_, size = t_ * tp_;
    float* s = scores();
    for (int64_t first = 0; first < heads_; first += group_) {
      const int64_t few = std::min(group_, heads_ - first);
      const half* of = parts + first * d_;
      half* share = shares + first * size;
      for (int64_t j = 0; j < few; ++j) by_columns(of + j * d_, 3 * h, of + h + j * d_, 3 * h, s + j * size);
      for (int64_t j = 0; j < few; ++j) softmax(s + j * size, bias, share + j * size);
      for (int64_t j = 0; j < few; ++j) by_rows(share + j * size, of + 2 * h + j * d_, 3 * h, out + (first + j) * d_, h);
    }
  }

  // With P the shares: dv = P^T do, dS = P (do v^T - rowsum(P do v^T)) / sqrt d, dq = dS k, dk = dS^T q, side by side in
  // to (t, 3 h); zero where not wanted.
  void back(const half* out, const half* parts, const half* shares, const bool wanted[3], half* to) const {
    thread_local Scratch<half> exchanged, plain;
    const int64_t h = heads_ * d_, size = t_ * tp_;
    half *turned = exchanged.of(size), *slopes = plain.of(group_ * size);
    float* s = scores();
    for (int64_t part = 0; part < 3; ++part)
      for (int64_t r = 0; !wanted[part] && r < t_; ++r) std::memset(to + (r * 3 + part) * h, 0, h * sizeof(half));
    for (int64_t first = 0; first < heads_; first += group_) {
      const int64_t few = std::min(group_, heads_ - first);
      const half *of = parts + first * d_, *share = shares + first * size, *from = out + first * d_;
      half* into = to + first * d_;
      const bool inner = wanted[0] || wanted[1];
      for (int64_t j = 0; inner && j < few; ++j) by_columns(from + j * d_, h, of + 2 * h + j * d_, 3 * h, s + j * size);
      for (int64_t j = 0; inner && j < few; ++j) softmax_back(s + j * size, share + j * size, slopes + j * size);
      for (int64_t j = 0; j < few; ++j) {
        if (wanted[0]) by_rows(slopes + j * size, of + h + j * d_, 3 * h, into + j * d_, 3 * h);
        if (wanted[1]) {
          turn(t_, t_, tp_, turned, [&](int64_t r, int64_t i) { return _mm512_loadu_ps(s + j * size + r * tp_ + i); });
          by_rows(turned, of + j * d_, 3 * h, into + h + j * d_, 3 * h);
        }
        if (wanted[2]) {
          turn(t_, t_, tp_, turned, [&](int64_t r, int64_t i) { return load(share + j * size + r * tp_ + i); });
          by_rows(turned, from + j * d_, h, into + 2 * h + j * d_, 3 * h);
        }
      }
    }
  }

 private:
  static constexpr int64_t CACHED = 1 << 16;  // scores of a group

  // s (t, tp) = a b^T, both (t, d)
  void by_columns(const half* a, int64_t lda, const half* b, int64_t ldb, float* s) const {
    thread_local Scratch<half> held;
    half* turned = held.of(tp_ * d_);
    for (int64_t column = 0; column < tp_; column += 64) {
      const int64_t width = std::min<int64_t>(64, tp_ - column);
      half* block = turned + column * d_;
      pack_turned(b + column * ldb, ldb, t_ - column, d_, width, block);
      brgemm(t_, width, d_, lda, width, tp_, false, a, block, s + column);
    }
  }

  // out (t, d) = a (t, tp) b, with b (t, d)
  void by_rows(const half* a, const half* b, int64_t ldb, half* out, int64_t ld_out) const {
    thread_local Scratch<half> held;
    thread_local Scratch<float> products;
    half* paired = held.of(tp_ * d_);
    float* c = products.of(t_ * d_);
    pack_rows(b, ldb, tp_, t_, d_, d_, paired);
    brgemm(t_, d_, tp_, tp_, d_, d_, false, a, paired, c);
    for (int64_t r = 0; r < t_; ++r)
      for (int64_t i = 0; i < d_; i += LANES) store(out + r * ld_out + i, _mm512_loadu_ps(c + r * d_ + i));
  }

  void softmax(float* s, const float* bias, half* shares) const {
    const __m512 factor = _mm512_set1_ps(1.4426950408889634f / std::sqrt(static_cast<float>(d_)));  // log2 e: powers are of two
    for (int64_t r = 0; r < t_; ++r, s += tp_, shares += tp_) {
      __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < tp_; i += LANES) {
        const __m512 x = _mm512_fmadd_ps(_mm512_loadu_ps(s + i), factor, _mm512_loadu_ps(bias + i));
        _mm512_storeu_ps(s + i, x);
        most = _mm512_max_ps(most, x);
      }
      const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
      for (int64_t i = 0; i < tp_; i += LANES) {
        const __m512 e = exponential2(_mm512_sub_ps(_mm512_loadu_ps(s + i), top));
        _mm512_storeu_ps(s + i, e);
        sum = _mm512_add_ps(sum, e);
      }
      const __m512 share = _mm512_set1_ps(1.f / _mm512_reduce_add_ps(sum));
      for (int64_t i = 0; i < tp_; i += LANES) store(shares + i, _mm512_mul_ps(_mm512_loadu_ps(s + i), share));
    }
  }

  // s (t, tp) from the gradient of the shares to dS, and the same as bfloat16.
  void softmax_back(float* s, const half* shares, half* slopes) const {
    const __m512 factor = _mm512_set1_ps(1.f / std::sqrt(static_cast<float>(d_)));
    for (int64_t r = 0; r < t_; ++r, s += tp_, shares += tp_, slopes += tp_) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < tp_; i += LANES) sum = _mm512_fmadd_ps(_mm512_loadu_ps(s + i), load(shares + i), sum);
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
      for (int64_t i = 0; i < tp_; i += LANES) {
        const __m512 share = _mm512_mul_ps(load(shares + i), factor), x = _mm512_mul_ps(share, _mm512_sub_ps(_mm512_loadu_ps(s + i), mean));
        _mm512_storeu_ps(s + i, x);
        store(slopes + i, x);
      }
    }
  }

  float* scores() const {
    thread_local Scratch<float> held;
    return held.of(group_ * t_ * tp_);
  }

  int64_t t_, heads_, d_, tp_, group_;
};

}  // namespace fedfuse
