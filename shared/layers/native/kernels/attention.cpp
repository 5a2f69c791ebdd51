// Attention with what stands around it, LN(x + attend(x S^T + b) O^T + c), and its way back, by blocks of whole sequences.

#include "heads.h"
#include "norm.h"

#include <torch/library.h>

namespace fedfuse {
namespace {

using at::Tensor;

// out (rows, n) = a (rows, k) times the weight, plus bias (n) and `more` (rows, n), each unless null.
void affine(int64_t rows, const half* a, int64_t k, const Packed& weight, const half* bias, const half* more, half* out) {
  const int64_t n = weight.width * weight.blocks;
  product(rows, a, k, weight, [=](int64_t r, int64_t at, __m512 x, __m512 y) {
    if (bias) x = _mm512_add_ps(x, load(bias + at)), y = _mm512_add_ps(y, load(bias + at + LANES));
    if (more) x = _mm512_add_ps(x, load(more + r * n + at)), y = _mm512_add_ps(y, load(more + r * n + at + LANES));
    store(out + r * n + at, x, y);
  });
}

// Args: x (n, t, h); mask: bool (n, t), True where a token may be attended to, one a row at least; weights as `Packed`;
//   keep: whether the way back will be asked for; inner: whether the mixed values are.
// Returns: y (n, t, h); queries, keys and values (n, t, 3 h), shares (n, heads, t, padded t), mixed values (n, t, h), sums
//   (n, t, h), their means and scales (n, t); empty where not asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention(
    const Tensor& x, const Tensor& mask, const Tensor& stacked, const Tensor& stacked_bias, const Tensor& mixing,
    const Tensor& mixing_bias, const Tensor& norm_weight, const Tensor& norm_bias, double eps, int64_t heads, bool keep, bool inner) {
  const int64_t n = x.size(0), t = x.size(1), h = x.size(2), tp = padded(t);
  const Packed s(stacked), o(mixing);
  const Heads each(t, heads, h / heads);
  const Norm norm{norm_weight.const_data_ptr<half>(), norm_bias.const_data_ptr<half>(), h, static_cast<float>(eps)};
  const int64_t kept = keep ? n : 0;
  const auto single = x.options().dtype(at::kFloat);
  Tensor y = unset({n, t, h}, x.options()), parts = unset({kept, t, 3 * h}, x.options());
  Tensor shares = unset({kept, heads, t, tp}, x.options()), mixed = unset({inner ? n : 0, t, h}, x.options());
  Tensor sums = unset({kept, t, h}, x.options()), mean = unset({n, t}, single), scale = unset({n, t}, single);
  const half *xp = x.const_data_ptr<half>(), *sb = stacked_bias.const_data_ptr<half>(), *ob = mixing_bias.const_data_ptr<half>();
  const bool* allowed = mask.const_data_ptr<bool>();
  half *yp = y.data_ptr<half>(), *pp = parts.data_ptr<half>(), *sp = shares.data_ptr<half>(), *mp = mixed.data_ptr<half>();
  half* zp = sums.data_ptr<half>();
  float *means = mean.data_ptr<float>(), *scales = scale.data_ptr<float>();

  by_blocks(n, t, [&](int64_t first, int64_t last) {
    thread_local Scratch<half> stack_rows, mixed_rows, sum_rows, share_rows;
    thread_local Scratch<float> biases;
    const int64_t rows = (last - first) * t, at = first * t;
    half* p = stack_rows.of(rows * 3 * h);
    half* m = inner ? mp + at * h : mixed_rows.of(rows * h);
    half* z = sum_rows.of(rows * h);
    float* bias = biases.of(tp);
    affine(rows, xp + at * h, h, s, sb, nullptr, p);
    for (int64_t q = first; q < last; ++q) {
      for (int64_t i = 0; i < tp; ++i) bias[i] = i < t && allowed[q * t + i] ? 0.f : -std::numeric_limits<float>::infinity();
      half* share = share_rows.of(heads * t * tp);
      each.forward(p + (q - first) * t * 3 * h, bias, share, m + (q - first) * t * h);
      if (keep) stream(sp + q * heads * t * tp, share, heads * t * tp);
    }
    affine(rows, m, h, o, ob, xp + at * h, z);
    for (int64_t r = 0; r < rows; ++r) norm.row(z + r * h, yp + (at + r) * h, means + at + r, scales + at + r);
    if (keep) {
      stream(pp + at * 3 * h, p, rows * 3 * h);
      stream(zp + at * h, z, rows * h);
    }
  });
  return {y, parts, shares, mixed, sums, mean, scale};
}

// Args: dy (n, t, h); what `attention` gave; weights as `Packed` the other way; query, key, value, below: which of their
//   gradients are asked for, and whether dx is (then all of the three must be); inner: whether that of the sums is.
// Returns: dx (n, t, h), of queries, keys and values (n, t, 3 h), zero where not asked for, and of the sums (n, t, h); empty
//   where not asked for.
std::tuple<Tensor, Tensor, Tensor> attention_back(
    const Tensor& dy, const Tensor& parts, const Tensor& shares, const Tensor& sums, const Tensor& mean, const Tensor& scale,
    const Tensor& norm_weight, const Tensor& stacked, const Tensor& mixing, bool query, bool key, bool value, bool below,
    bool inner) {
  const int64_t n = dy.size(0), t = dy.size(1), h = dy.size(2), heads = shares.size(1), tp = padded(t);
  const Packed s(stacked), o(mixing);
  const Heads each(t, heads, h / heads);
  const bool wanted[3] = {query, key, value};
  const Norm norm{norm_weight.const_data_ptr<half>(), nullptr, h, 0.f};
  Tensor dx = unset({below ? n : 0, t, h}, dy.options()), d_parts = unset({n, t, 3 * h}, dy.options());
  Tensor d_sums = unset({inner ? n : 0, t, h}, dy.options());
  const half *gp = dy.const_data_ptr<half>(), *pp = parts.const_data_ptr<half>(), *sp = shares.const_data_ptr<half>();
  const half* zp = sums.const_data_ptr<half>();
  const float *means = mean.const_data_ptr<float>(), *scales = scale.const_data_ptr<float>();
  half *xp = dx.data_ptr<half>(), *dp = d_parts.data_ptr<half>(), *dz = d_sums.data_ptr<half>();

  by_blocks(n, t, [&](int64_t first, int64_t last) {
    thread_local Scratch<half> mixed_rows, sum_rows;
    const int64_t rows = (last - first) * t, at = first * t;
    half *z = inner ? dz + at * h : sum_rows.of(rows * h), *m = mixed_rows.of(rows * h);
    for (int64_t r = 0; r < rows; ++r)
      norm.back(gp + (at + r) * h, zp + (at + r) * h, means[at + r], scales[at + r], z + r * h);
    affine(rows, z, h, o, nullptr, nullptr, m);
    for (int64_t q = first; q < last; ++q) {
      // What was kept is read in pieces of a head, too small for the processor to see what will come.
      fetch(pp + q * t * 3 * h, t * 3 * h);
      fetch(sp + q * heads * t * tp, heads * t * tp);
      each.back(m + (q - first) * t * h, pp + q * t * 3 * h, sp + q * heads * t * tp, wanted, dp + q * t * 3 * h);
    }
    if (below) affine(rows, dp + at * 3 * h, 3 * h, s, nullptr, z, xp + at * h);
  });
  return {dx, d_parts, d_sums};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fedfuse, library) {
  library.def(
      "attention(Tensor x, Tensor mask, Tensor stacked, Tensor stacked_bias, Tensor mixing, Tensor mixing_bias, "
      "Tensor norm_weight, Tensor norm_bias, float eps, int heads, bool keep, bool inner) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      &attention);
  library.def(
      "attention_back(Tensor dy, Tensor parts, Tensor shares, Tensor sums, Tensor mean, Tensor scale, Tensor norm_weight, "
      "Tensor stacked, Tensor mixing, bool query, bool key, bool value, bool below, bool inner) -> (Tensor, Tensor, Tensor)",
      &attention_back);
}

}  // namespace fedfuse
