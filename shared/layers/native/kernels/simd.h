// Sixteen numbers at a time: bfloat16 in memory, float32 in registers.
#pragma once

#include <c10/util/BFloat16.h>
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace fedfuse {

using half = c10::BFloat16;

constexpr int64_t LANES = 16;

inline __m512i widened(const half* from) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline __m512 load(const half* from) { return _mm512_castsi512_ps(_mm512_slli_epi32(widened(from), 16)); }

// Rounded to nearest, ties to even.
inline void store(half* to, __m512 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x)); }

inline __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

inline void store(half* to, __m512 low, __m512 high) { _mm512_storeu_si512(to, rounded(low, high)); }

// `stream` writes whole cache lines past the caches: what is read again only on the way back would push out what is needed before,
// and memory would be read first, to be written over. Others see it after a fence.
inline void stream(half* to, __m512 low, __m512 high) { _mm512_stream_si512(reinterpret_cast<__m512i*>(to), rounded(low, high)); }

inline void stream(half* to, const half* from, int64_t count) {
  if (reinterpret_cast<uintptr_t>(to) % 64 || count % (2 * LANES)) {
    std::memcpy(to, from, count * sizeof(half));
    return;
  }
  for (int64_t i = 0; i < count; i += 2 * LANES)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
}

// Asks for memory that will be read soon.
inline void fetch(const half* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 2 * LANES) _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
}

// 2^x for x <= 0, to 3e-6 of itself, and 0 below 2^-126: x = n + r, |r| <= 1/2, and 2^r as the polynomial whose greatest relative
// error is least. NaN stays NaN.
inline __m512 exponential2(__m512 x) {
  const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.f), _CMP_NLT_UQ);
  const __m512 n = _mm512_roundscale_ps(x, 8), r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.0095700904f);
  for (const float c : {0.0559178594f, 0.2402474511f, 0.6931218149f, 0.9999992614f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_maskz_scalef_ps(kept, p, n);
}

// Sixteen rows of sixteen 32-bit numbers: rows and columns exchanged.
inline void transpose(__m512i r[16]) {
  __m512i s[16];
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    s[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    s[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    s[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    s[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(s[i + 4], s[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(s[i + 4], s[i + 12], 0xdd);
  }
}

}  // namespace fedfuse
