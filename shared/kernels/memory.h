// Memory for what a layer keeps from its way forward for its way back, kept from one step to the next.
//
// A step writes tens of megabytes and frees them; from the C library each page of them would come again as a fault and
// a page of zeros, which takes longer than what is computed into it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/accumulate.h>

#include <sys/mman.h>

#include <map>
#include <mutex>
#include <utility>

namespace fedfuse {

class Memory {
 public:
  static constexpr size_t MOST = size_t{512} << 20;  // bytes that lie free
  static constexpr size_t LEAST = size_t{64} << 10;  // of a block; less comes cheaply from the C library

  static Memory& shared() {
    static auto* memory = new Memory;  // never destroyed: tensors may live as long as the process
    return *memory;
  }

  // An unset tensor.
  at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
    const size_t asked = c10::multiply_integers(sizes) * options.dtype().itemsize();
    if (asked < LEAST) return at::empty(sizes, options);
    const size_t bytes = (asked + LEAST - 1) / LEAST * LEAST;
    const auto [data, size] = take(bytes);
    c10::profiledCPUMemoryReporter().New(data, size);  // torch's profiler counts it with its own
    return at::from_blob(data, sizes, [this, size = size](void* block) {
      c10::profiledCPUMemoryReporter().Delete(block);
      give(block, size);
    }, options);
  }

 private:
  std::pair<void*, size_t> take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> guard(lock_);
      const auto found = free_.lower_bound(bytes);
      if (found != free_.end() && found->first <= 2 * bytes) {
        const auto [size, block] = *found;
        free_.erase(found);
        free_bytes_ -= size;
        return {block, size};
      }
    }
    void* block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK_WITH(OutOfMemoryError, block != MAP_FAILED, "no memory for ", bytes, " bytes");
    return {block, bytes};
  }

  void give(void* block, size_t size) {
    const std::lock_guard<std::mutex> guard(lock_);
    if (free_bytes_ + size > MOST) {
      munmap(block, size);
      return;
    }
    free_.emplace_hint(free_.lower_bound(size), size, block);  // the last freed goes first: it may still be in a cache
    free_bytes_ += size;
  }

  std::mutex lock_;
  std::multimap<size_t, void*> free_;
  size_t free_bytes_ = 0;
};

inline at::Tensor unset(at::IntArrayRef sizes, const at::TensorOptions& options) { return Memory::shared().empty(sizes, options); }

}  // namespace fedfuse
