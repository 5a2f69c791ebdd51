// The mean of a text's real tokens, and its way back.

#include "blocks.h"

#include <torch/library.h>

namespace fedfuse {
namespace {

using at::Tensor;

int64_t tokens(const bool* mask, int64_t t) { return std::max<int64_t>(1, std::count(mask, mask + t, true)); }

// Args: x (n, t, h); mask: bool (n, t). Returns: float32 (n, h); zero for a text without tokens.
Tensor mean(const Tensor& x, const Tensor& mask) {
  const int64_t n = x.size(0), t = x.size(1), h = x.size(2);
  Tensor out = at::empty({n, h}, x.options().dtype(at::kFloat));
  const half* xp = x.const_data_ptr<half>();
  const bool* real = mask.const_data_ptr<bool>();
  float* op = out.data_ptr<float>();
  in_parts(n, n, [&](int64_t q, int64_t) {
    const __m512 share = _mm512_set1_ps(1.f / tokens(real + q * t, t));
    for (int64_t i = 0; i < h; i += LANES) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t r = 0; r < t; ++r)
        if (real[q * t + r]) sum = _mm512_add_ps(sum, load(xp + (q * t + r) * h + i));
      _mm512_storeu_ps(op + q * h + i, _mm512_mul_ps(sum, share));
    }
  });
  return out;
}

// Args: of the mean, float32 (n, h); mask: bool (n, t). Returns: bfloat16 (n, t, h).
Tensor mean_back(const Tensor& gradient, const Tensor& mask) {
  const int64_t n = mask.size(0), t = mask.size(1), h = gradient.size(1);
  Tensor out = unset({n, t, h}, gradient.options().dtype(at::kBFloat16));
  const float* gp = gradient.const_data_ptr<float>();
  const bool* real = mask.const_data_ptr<bool>();
  half* op = out.data_ptr<half>();
  in_parts(n, n, [&](int64_t q, int64_t) {
    const __m512 share = _mm512_set1_ps(1.f / tokens(real + q * t, t));
    for (int64_t r = 0; r < t; ++r)
      for (int64_t i = 0; i < h; i += LANES)
        store(op + (q * t + r) * h + i, real[q * t + r] ? _mm512_mul_ps(_mm512_loadu_ps(gp + q * h + i), share) : _mm512_setzero_ps());
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fedfuse, library) {
  library.def("mean(Tensor x, Tensor mask) -> Tensor", &mean);
  library.def("mean_back(Tensor gradient, Tensor mask) -> Tensor", &mean_back);
}

}  // namespace fedfuse
