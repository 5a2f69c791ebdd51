// The wide inner layer with what follows it, LN(y + gelu(y U^T + b) D^T + c), and its way back.
//
// A block of rows goes through all of it before the next begins, so that the wide rows, four times as long as the others,
// are read where they were written: in the core's cache.

#include "blocks.h"
#include "gelu.h"
#include "norm.h"

#include <torch/library.h>

namespace fedfuse {
namespace {

using at::Tensor;

// Args: y (m, h); weights as `Packed`; keep: whether the way back will be asked for; wide: whether gelu's values are asked for.
// Returns: x' (m, h); gelu's slopes (m, k), values (m, k), sums (m, h), their means and scales (m); empty where not asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> inner(
    const Tensor& y, const Tensor& up, const Tensor& up_bias, const Tensor& down, const Tensor& down_bias,
    const Tensor& norm_weight, const Tensor& norm_bias, double eps, bool keep, bool wide) {
  const int64_t m = y.size(0), h = y.size(1), k = up_bias.size(0);
  const Packed u(up), d(down);
  const Norm norm{norm_weight.const_data_ptr<half>(), norm_bias.const_data_ptr<half>(), h, static_cast<float>(eps)};
  Tensor out = unset({m, h}, y.options()), slopes = unset({keep ? m : 0, k}, y.options());
  Tensor values = unset({wide ? m : 0, k}, y.options()), sums = unset({keep ? m : 0, h}, y.options());
  const auto single = y.options().dtype(at::kFloat);
  Tensor mean = unset({m}, single), scale = unset({m}, single);
  const half *ub = up_bias.const_data_ptr<half>(), *db = down_bias.const_data_ptr<half>(), *yp = y.const_data_ptr<half>();
  half *op = out.data_ptr<half>(), *sp = slopes.data_ptr<half>(), *vp = values.data_ptr<half>(), *wp = sums.data_ptr<half>();
  float *mp = mean.data_ptr<float>(), *cp = scale.data_ptr<float>();

  by_blocks(m, 1, [&](int64_t first, int64_t last) {
    thread_local Scratch<half> wide_rows, sum_rows;
    const int64_t rows = last - first;
    half* g = wide ? vp + first * k : wide_rows.of(rows * k);
    half* w = sum_rows.of(rows * h);
    const int64_t lines = (h + rows - 1) / rows;
    product(rows, yp + first * h, h, u, [=, &u](int64_t r, int64_t at, __m512 a, __m512 b) {
      const Gelu low = gelu(_mm512_add_ps(a, load(ub + at))), high = gelu(_mm512_add_ps(b, load(ub + at + LANES)));
      store(g + r * k + at, low.value, high.value);
      const int64_t column = at & (u.width - 1);
      // GELU leaves the loads idle: the weights of the next columns are fetched meanwhile (past the last, nothing).
      fetch(u.data + (at - column + u.width) * h + (r * u.width + column) * lines, 32 * lines);
      if (keep) stream(sp + (at - column) * m + (first + r) * u.width + column, low.slope, high.slope);
    });
    product(rows, g, k, d, [=](int64_t r, int64_t at, __m512 a, __m512 b) {
      const half* more = yp + (first + r) * h + at;
      a = _mm512_add_ps(_mm512_add_ps(a, load(db + at)), load(more));
      store(w + r * h + at, a, _mm512_add_ps(_mm512_add_ps(b, load(db + at + LANES)), load(more + LANES)));
    });
    for (int64_t r = 0; r < rows; ++r) norm.row(w + r * h, op + (first + r) * h, mp + first + r, cp + first + r);
    if (keep) stream(wp + first * h, w, rows * h);
  });
  return {out, slopes, values, sums, mean, scale};
}

// Args: dx (m, h); what `inner` gave; weights as `Packed` the other way; below: whether dy is asked for; wide: whether dp is.
// Returns: dy (m, h), dp (m, k), of the sums (m, h); empty where not asked for.
std::tuple<Tensor, Tensor, Tensor> inner_back(
    const Tensor& dx, const Tensor& slopes, const Tensor& sums, const Tensor& mean, const Tensor& scale,
    const Tensor& norm_weight, const Tensor& down, const Tensor& up, bool below, bool wide) {
  const int64_t m = dx.size(0), h = dx.size(1), k = slopes.size(1);
  const Packed d(down), u(up);
  const Norm norm{norm_weight.const_data_ptr<half>(), nullptr, h, 0.f};
  Tensor dy = unset({below ? m : 0, h}, dx.options()), dp = unset({wide ? m : 0, k}, dx.options());
  Tensor dw = unset({wide ? m : 0, h}, dx.options());
  const half *gp = dx.const_data_ptr<half>(), *sp = slopes.const_data_ptr<half>(), *wp = sums.const_data_ptr<half>();
  const float *mp = mean.const_data_ptr<float>(), *cp = scale.const_data_ptr<float>();
  half *yp = dy.data_ptr<half>(), *pp = dp.data_ptr<half>(), *dwp = dw.data_ptr<half>();

  by_blocks(m, 1, [&](int64_t first, int64_t last) {
    thread_local Scratch<half> wide_rows, sum_rows;
    const int64_t rows = last - first;
    half* p = wide ? pp + first * k : wide_rows.of(rows * k);
    half* w = wide ? dwp + first * h : sum_rows.of(rows * h);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (first + r) * h;
      norm.back(gp + at, wp + at, mp[first + r], cp[first + r], w + r * h);
    }
    product(rows, w, h, d, [=, &d](int64_t r, int64_t at, __m512 a, __m512 b) {
      const int64_t column = at & (d.width - 1);
      const half* slope = sp + (at - column) * m + (first + r) * d.width + column;
      store(p + r * k + at, _mm512_mul_ps(a, load(slope)), _mm512_mul_ps(b, load(slope + LANES)));
    });
    if (!below) return;
    product(rows, p, k, u, [=](int64_t r, int64_t at, __m512 a, __m512 b) {
      const half* more = w + r * h + at;
      store(yp + (first + r) * h + at, _mm512_add_ps(a, load(more)), _mm512_add_ps(b, load(more + LANES)));
    });
  });
  return {dy, dp, dw};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fedfuse, library) {
  library.def(
      "inner(Tensor y, Tensor up, Tensor up_bias, Tensor down, Tensor down_bias, Tensor norm_weight, Tensor norm_bias, "
      "float eps, bool keep, bool wide) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      &inner);
  library.def(
      "inner_back(Tensor dx, Tensor slopes, Tensor sums, Tensor mean, Tensor scale, Tensor norm_weight, Tensor down, "
      "Tensor up, bool below, bool wide) -> (Tensor, Tensor, Tensor)",
      &inner_back);
}

}  // namespace fedfuse
