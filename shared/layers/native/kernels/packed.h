// The right side of a product as the processor's matrix unit reads it: columns in blocks, and in a block the rows in pairs.
#pragma once

#include "simd.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

namespace fedfuse {

// Tokens and ranks are taken by sixteen; those past the last are zero.
inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

inline int64_t width_of(int64_t n) { return n % 64 == 0 ? 64 : 32; }

// A (k, n) matrix as bfloat16 (n / width, k / 2, width, 2).
struct Packed {
  const half* data;
  int64_t k, width, blocks;

  explicit Packed(const at::Tensor& t)
      : data(t.const_data_ptr<half>()), k(2 * t.size(1)), width(t.size(2)), blocks(t.size(0)) {}
};

// from (there, n), rows of ld numbers, as a packed (k, n); the rows from `there` on are zero.
inline void pack_rows(const half* from, int64_t ld, int64_t k, int64_t there, int64_t n, int64_t width, half* to) {
  const __m512i zero = _mm512_setzero_si512();
  for (int64_t j = 0; j < n; j += width)
    for (int64_t r = 0; r < k; r += 2)
      for (int64_t i = 0; i < width; i += LANES) {
        const half* row = from + r * ld + j + i;
        const __m512i even = r < there ? widened(row) : zero, odd = r + 1 < there ? widened(row + ld) : zero;
        _mm512_storeu_si512(to + j * k + r * width + 2 * i, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
      }
}

// The transposed of from (there, k), rows of ld numbers, as a packed (k, n) of one block; columns from `there` on are zero.
inline void pack_turned(const half* from, int64_t ld, int64_t there, int64_t k, int64_t n, half* to) {
  for (int64_t j = 0; j < n; j += LANES)
    for (int64_t i = 0; i < k / 2; i += LANES) {  // pairs of rows
      const int64_t few = std::min(LANES, k / 2 - i);
      __m512i rows[16];
      for (int64_t r = 0; r < LANES; ++r)
        rows[r] = j + r < there ? _mm512_maskz_loadu_epi32((1u << few) - 1, from + (j + r) * ld + 2 * i) : _mm512_setzero_si512();
      transpose(rows);
      for (int64_t r = 0; r < few; ++r) _mm512_storeu_si512(to + ((i + r) * n + j) * 2, rows[r]);
    }
}

// to (n, tp): the transposed of (t, n) numbers, tokens from t on zero; of(r, i) gives sixteen of row r from column i on.
template <typename Of>
void turn(int64_t t, int64_t n, int64_t tp, half* to, const Of& of) {
  for (int64_t r = 0; r < tp; r += LANES)
    for (int64_t c = 0; c < n; c += LANES) {
      __m512i rows[16];
      for (int64_t i = 0; i < LANES; ++i) rows[i] = r + i < t ? _mm512_castps_si512(of(r + i, c)) : _mm512_setzero_si512();
      transpose(rows);
      for (int64_t i = 0; i < std::min(LANES, n - c); ++i) store(to + (c + i) * tp + r, _mm512_castsi512_ps(rows[i]));
    }
}

}  // namespace fedfuse
