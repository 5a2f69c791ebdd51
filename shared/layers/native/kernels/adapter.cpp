// What private training asks of an adapted map y = x (W + s B A)^T + b: the gradient of every example's own copy of A and B.
//
//   u = x A^T    du = dy (s B)    dA = du^T x    dB = s dy^T u, for an example's own rows
//
// and the map itself, merged and laid out for the products of `blocks.h`.

#include "blocks.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

namespace fedfuse {
namespace {

using at::Tensor;

// to (m, r) = factor times the transposed of from (r, m).
void exchange(const float* from, int64_t r, int64_t m, float factor, float* to) {
  for (int64_t i = 0; i < r; i += LANES)
    for (int64_t j = 0; j < m; j += LANES) {
      const int64_t few = std::min(LANES, r - i);
      __m512i rows[16];
      for (int64_t e = 0; e < LANES; ++e)
        rows[e] = e < few ? _mm512_castps_si512(_mm512_mul_ps(_mm512_loadu_ps(from + (i + e) * m + j), _mm512_set1_ps(factor)))
                          : _mm512_setzero_si512();
      transpose(rows);
      for (int64_t e = 0; e < LANES; ++e) _mm512_mask_storeu_epi32(to + (j + e) * r + i, (1u << few) - 1, rows[e]);
    }
}

// Args: weight (k, d); a: A_i (rank, d) and b: B_i (stops - starts, rank) of each change, float32 or bfloat16.
// Returns: W' = W + sum s_i B_i A_i as `Packed`, W'^T for the way ahead and W' for the way back; all A_i one below the other, (r, d),
//   and all s_i B_i side by side, (k, r), r filled up with zeros to a multiple of 16.
std::tuple<Tensor, Tensor, Tensor, Tensor> merged(const Tensor& weight, at::TensorList a, at::TensorList b, at::IntArrayRef starts,
                                                  at::ArrayRef<double> scales) {
  const int64_t k = weight.size(0), d = weight.size(1), wk = width_of(k), wd = width_of(d);
  int64_t ranks = 0;
  for (const Tensor& factor : a) ranks += factor.size(0);
  const int64_t r = padded(ranks);
  Tensor ahead = unset({k / wk, d / 2, wk, 2}, weight.options()), back = unset({d / wd, k / 2, wd, 2}, weight.options());
  Tensor below = at::zeros({r, d}, weight.options()), beside = at::zeros({k, r}, weight.options());
  for (int64_t i = 0, at = 0; i < static_cast<int64_t>(a.size()); at += a[i++].size(0)) {
    const int64_t rank = a[i].size(0);
    below.narrow(0, at, rank).copy_(a[i]);
    beside.narrow(0, starts[i], b[i].size(0)).narrow(1, at, rank).copy_(b[i].mul(scales[i]));
  }
  const half *w = weight.const_data_ptr<half>(), *bp = beside.const_data_ptr<half>();
  Tensor paired = at::empty({d / wd, r / 2, wd, 2}, weight.options());
  pack_rows(below.const_data_ptr<half>(), d, r, r, d, wd, paired.data_ptr<half>());
  const Packed change(paired);
  half *to_ahead = ahead.data_ptr<half>(), *to_back = back.data_ptr<half>();
  in_parts(k / wk, k / wk, [&](int64_t block, int64_t) {
    thread_local Scratch<half> rows;
    half* sum = rows.of(wk * d);
    const half* of = w + block * wk * d;
    if (r)
      product(wk, bp + block * wk * r, r, change, [=](int64_t row, int64_t at, __m512 low, __m512 high) {
        const int64_t place = row * d + at;
        store(sum + place, _mm512_add_ps(load(of + place), low), _mm512_add_ps(load(of + place + LANES), high));
      });
    if (r) of = sum;
    pack_turned(of, d, wk, d, wk, to_ahead + block * wk * d);
    for (int64_t column = 0; column < d; column += wd)
      pack_rows(of + column, d, wk, wk, wd, wd, to_back + column * k + block * wk * wd);
  });
  return {ahead, back, below, beside};
}

// Args: dy (n, t, k); x (n, t, d); a (r, d): all A, one below the other; b (k, r): all s B, side by side, each in its own rows and
//   zeros in the others; all bfloat16, r filled up with zeros to a multiple of 16 of 64 at most. ranks, starts, stops, scales: of
//   each change, and at which outputs it begins and ends. of_a, of_b: whose gradients are asked for.
// Returns: float32 A_1 (n, rank, d), B_1 (n, stop - start, rank), A_2 and so on; empty where not asked for.
std::vector<Tensor> factors(const Tensor& dy, const Tensor& x, const Tensor& a, const Tensor& b, at::IntArrayRef ranks,
                            at::IntArrayRef starts, at::IntArrayRef stops, at::ArrayRef<double> scales, bool of_a, bool of_b) {
  const int64_t n = dy.size(0), t = dy.size(1), k = dy.size(2), d = x.size(2), r = a.size(0), tp = padded(t), wd = width_of(d);
  const auto single = x.options().dtype(at::kFloat);
  std::vector<Tensor> found;
  int64_t widest = d;
  for (size_t i = 0; i < ranks.size(); ++i) {
    found.push_back(unset({of_a ? n : 0, ranks[i], d}, single));
    found.push_back(unset({of_b ? n : 0, stops[i] - starts[i], ranks[i]}, single));
    widest = std::max(widest, stops[i] - starts[i]);
  }
  std::vector<half> turned(of_b ? d * r : 0), plain(of_a ? k * r : 0);
  const half *yp = dy.const_data_ptr<half>(), *xp = x.const_data_ptr<half>();
  if (of_b) pack_turned(a.const_data_ptr<half>(), d, r, d, r, turned.data());
  if (of_a) pack_rows(b.const_data_ptr<half>(), r, k, k, r, r, plain.data());

  // to (r, tp): what the weight (ld, r) makes of an example's tokens, a token a column.
  const auto low = [&](const half* rows, int64_t ld, const half* weight, float* c, half* to) {
    brgemm(t, r, ld, ld, r, r, false, rows, weight, c);
    turn(t, r, tp, to, [&](int64_t row, int64_t i) { return _mm512_loadu_ps(c + row * r + i); });
  };
  in_parts(n, n, [&](int64_t q, int64_t) {
    thread_local Scratch<half> few, rows;
    thread_local Scratch<float> lows, products;
    half *u = few.of(r * tp), *w = rows.of(tp * widest);
    float *c = lows.of(t * r), *p = products.of(r * widest);
    const half *dys = yp + q * t * k, *xs = xp + q * t * d;
    if (of_a) {
      low(dys, k, plain.data(), c, u);
      pack_rows(xs, d, tp, t, d, wd, w);
      for (size_t i = 0, at = 0; i < ranks.size(); at += ranks[i++])
        for (int64_t j = 0; j < d; j += wd)
          brgemm(ranks[i], wd, tp, tp, wd, d, false, u + at * tp, w + j * tp, found[2 * i].data_ptr<float>() + q * ranks[i] * d + j);
    }
    if (!of_b) return;
    low(xs, d, turned.data(), c, u);
    for (size_t i = 0, at = 0; i < ranks.size(); at += ranks[i++]) {
      const int64_t m = stops[i] - starts[i], wm = width_of(m);
      pack_rows(dys + starts[i], k, tp, t, m, wm, w);
      for (int64_t j = 0; j < m; j += wm) brgemm(ranks[i], wm, tp, tp, wm, m, false, u + at * tp, w + j * tp, p + j);
      exchange(p, ranks[i], m, static_cast<float>(scales[i]), found[2 * i + 1].data_ptr<float>() + q * m * ranks[i]);
    }
  });
  return found;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fedfuse, library) {
  library.def(
      "merged(Tensor weight, Tensor[] a, Tensor[] b, int[] starts, float[] scales) -> (Tensor, Tensor, Tensor, Tensor)", &merged);
  library.def(
      "factors(Tensor dy, Tensor x, Tensor a, Tensor b, int[] ranks, int[] starts, int[] stops, float[] scales, bool of_a, "
      "bool of_b) -> Tensor[]", &factors);
}

}  // namespace fedfuse
