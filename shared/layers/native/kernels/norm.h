// Layer normalisation of rows (Ba et al. 2016), and its way back.
#pragma once

#include "simd.h"

#include <cmath>

namespace fedfuse {

struct Norm {
  const half *weight, *bias;  // (h)
  int64_t h;                  // a multiple of LANES
  float eps;

  // y = (x - mean) scale weight + bias
  void row(const half* x, half* y, float* mean, float* scale) const {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < h; i += LANES) sum = _mm512_add_ps(sum, load(x + i));
    const float m = _mm512_reduce_add_ps(sum) / h;
    for (int64_t i = 0; i < h; i += LANES) {
      const __m512 d = _mm512_sub_ps(load(x + i), _mm512_set1_ps(m));
      squares = _mm512_fmadd_ps(d, d, squares);
    }
    const float s = 1.f / std::sqrt(_mm512_reduce_add_ps(squares) / h + eps);
    for (int64_t i = 0; i < h; i += LANES) {
      const __m512 normal = _mm512_mul_ps(_mm512_sub_ps(load(x + i), _mm512_set1_ps(m)), _mm512_set1_ps(s));
      store(y + i, _mm512_fmadd_ps(normal, load(weight + i), load(bias + i)));
    }
    *mean = m, *scale = s;
  }

  // dx = scale (g - mean(g) - n mean(g n)), with g = dy weight and n the normal row
  void back(const half* dy, const half* x, float mean, float scale, half* dx) const {
    __m512 sum = _mm512_setzero_ps(), product = _mm512_setzero_ps();
    const __m512 m = _mm512_set1_ps(mean), s = _mm512_set1_ps(scale);
    for (int64_t i = 0; i < h; i += LANES) {
      const __m512 g = _mm512_mul_ps(load(dy + i), load(weight + i));
      sum = _mm512_add_ps(sum, g);
      product = _mm512_fmadd_ps(g, _mm512_mul_ps(_mm512_sub_ps(load(x + i), m), s), product);
    }
    const __m512 first = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / h), second = _mm512_set1_ps(_mm512_reduce_add_ps(product) / h);
    for (int64_t i = 0; i < h; i += LANES) {
      const __m512 g = _mm512_mul_ps(load(dy + i), load(weight + i)), n = _mm512_mul_ps(_mm512_sub_ps(load(x + i), m), s);
      store(dx + i, _mm512_mul_ps(s, _mm512_sub_ps(_mm512_sub_ps(g, first), _mm512_mul_ps(n, second))));
    }
  }
};

}  // namespace fedfuse
