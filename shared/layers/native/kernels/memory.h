// Memory in huge pages, kept from one step to the next.
//
// A step writes tens of megabytes and frees them; from the C library each page of them would come again as a fault and a page of
// zeros, which takes longer than what is computed into it. And rows that lie in pages from all over the machine's memory get in each
// other's way in a core's cache: huge pages are a tenth of a step.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/accumulate.h>

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace fedfuse {

constexpr size_t PAGE = size_t{2} << 20;

inline size_t up_to(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

// So many huge pages, from the system.
inline char* pages(size_t count) {
  const size_t bytes = count * PAGE;
  void* found = mmap(nullptr, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TORCH_CHECK_WITH(OutOfMemoryError, found != MAP_FAILED, "no memory for ", bytes, " bytes");
  char *from = static_cast<char*>(found), *first = reinterpret_cast<char*>(up_to(reinterpret_cast<uintptr_t>(from), PAGE));
  if (first > from) munmap(from, first - from);
  if (first < from + PAGE) munmap(first + bytes, from + PAGE - first);
  madvise(first, bytes, MADV_HUGEPAGE);  // a wish: without huge pages everything goes on, slower
  return first;
}

// Memory that is given back at its end, a piece after the other.
class Slab {
 public:
  Slab() = default;
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
  ~Slab() {
    for (const auto& [first, bytes] : held_) munmap(first, bytes);
  }

  char* take(size_t bytes) {
    if (left_ < bytes) {
      const size_t count = (bytes + PAGE - 1) / PAGE;
      next_ = pages(count), left_ = count * PAGE;
      held_.emplace_back(next_, left_);
    }
    left_ -= bytes;
    return std::exchange(next_, next_ + bytes);
  }

 private:
  char* next_ = nullptr;
  size_t left_ = 0;
  std::vector<std::pair<char*, size_t>> held_;
};

// A thread's memory for what lives no longer than a block of rows.
template <typename T>
class Scratch {
 public:
  T* of(int64_t size) {
    thread_local Slab slab;
    if (size_ < size) {
      size_ = std::max(size, 2 * size_);  // what was held before is lost, which is less than what is held now
      held_ = reinterpret_cast<T*>(slab.take(up_to(size_ * sizeof(T), 64)));
    }
    return held_;
  }

 private:
  T* held_ = nullptr;
  int64_t size_ = 0;
};

// Memory of tensors.
class Memory {
 public:
  static constexpr size_t MOST = size_t{512} << 20;  // bytes that lie free
  static constexpr size_t LEAST = size_t{64} << 10;  // of a tensor; less comes cheaply from the C library
  static constexpr size_t SMALLEST = 4096;           // what blocks are multiples of

  static Memory& shared() {
    static auto* memory = new Memory;  // never destroyed: tensors may live as long as the process
    return *memory;
  }

  // An unset tensor.
  at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
    const size_t asked = c10::multiply_integers(sizes) * options.dtype().itemsize();
    if (asked < LEAST) return at::empty(sizes, options);
    const size_t bytes = up_to(asked, asked < PAGE / 2 ? SMALLEST : PAGE);
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
      if (bytes < PAGE) return {small_.take(bytes), bytes};
    }
    return {pages(bytes / PAGE), bytes};
  }

  void give(void* block, size_t size) {
    const std::lock_guard<std::mutex> guard(lock_);
    if (size >= PAGE && free_bytes_ + size > MOST) {
      munmap(block, size);
      return;
    }
    free_.emplace_hint(free_.lower_bound(size), size, block);  // the last freed goes first: it may still be in a cache
    free_bytes_ += size;
  }

  std::mutex lock_;
  std::multimap<size_t, void*> free_;
  size_t free_bytes_ = 0;
  Slab small_;
};

inline at::Tensor unset(at::IntArrayRef sizes, const at::TensorOptions& options) { return Memory::shared().empty(sizes, options); }

}  // namespace fedfuse
