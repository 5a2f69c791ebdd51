// The exact GELU, x Phi(x), and its derivative (Hendrycks & Gimpel 2016), for results that are rounded to bfloat16.
#pragma once

#include "simd.h"

namespace fedfuse {

struct Gelu {
  __m512 value, slope;  // slope = Phi(x) + x phi(x)
};

// Phi(-|x|) = e^(-x^2/2) t P(t) / 2, t = 1 / (1 + 0.3275911 |x| / sqrt 2), to 1e-7 (Abramowitz & Stegun 7.1.26); phi needs the
// same exponential. The processor's reciprocal is good to 2^-14, where bfloat16 keeps 2^-9.
inline Gelu gelu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  const __m512 e = exponential2(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.72134752044448170f)));  // log2(e) / 2
  const __m512 t = _mm512_rcp14_ps(_mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.23164190f), one));
  __m512 p = _mm512_set1_ps(0.5307027145f);
  for (const float c : {-0.7265760135f, 0.7107068705f, -0.142248368f, 0.127414796f}) p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c));
  const __m512 below = _mm512_mul_ps(_mm512_mul_ps(p, t), e);
  const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
  const __m512 cdf = _mm512_mask_sub_ps(below, positive, one, below);
  const __m512 pdf = _mm512_mul_ps(e, _mm512_set1_ps(0.3989422804014327f));
  return {_mm512_mul_ps(x, cdf), _mm512_fmadd_ps(x, pdf, cdf)};
}

}  // namespace fedfuse
