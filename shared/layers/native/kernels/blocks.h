// Products of a block of rows, few enough to stay in a core's cache, and what is done with them while they are there.
#pragma once

#include "memory.h"
#include "packed.h"

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

namespace fedfuse {

constexpr int64_t ROWS = 256;  // of a block, at most, unless one sequence is longer

using at::native::cpublas::brgemm;

// a (m, k), rows of lda numbers, times a weight, a block of columns after the other; each(row, column, low, high) for every thirty-two
// numbers of the product.
template <typename Each>
void product(int64_t m, const half* a, int64_t lda, const Packed& b, const Each& each) {
  thread_local Scratch<float> held;
  float* c = held.of(m * b.width);
  for (int64_t j = 0; j < b.blocks; ++j) {
    brgemm(m, b.width, b.k, lda, b.width, b.width, false, a, b.data + j * b.k * b.width, c);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t i = 0; i < b.width; i += 2 * LANES) {
        const float* p = c + r * b.width + i;
        each(r, j * b.width + i, _mm512_loadu_ps(p), _mm512_loadu_ps(p + LANES));
      }
  }
}

// work(first, last) in all threads, for parts of n of at least one each.
template <typename Work>
void in_parts(int64_t n, int64_t parts, const Work& work) {
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) work(n * part / parts, n * (part + 1) / parts);
    at::native::cpublas::brgemm_release();
    _mm_sfence();
  });
}

// The same for blocks of sequences of t rows: as many blocks for each thread as for the next.
template <typename Work>
void by_blocks(int64_t n, int64_t t, const Work& work) {
  const int64_t threads = at::get_num_threads(), rounds = std::max<int64_t>(1, (n * t + ROWS * threads - 1) / (ROWS * threads));
  in_parts(n, std::min(n, rounds * threads), work);
}

}  // namespace fedfuse
