// Memory of large tensors: pieces of one range of addresses, each as long as was asked for, that serve any later tensor
// that fits.
//
// torch asks the C library for blocks at multiples of 64 bytes. glibc then looks for a free piece that is longer than the
// block by the alignment, so a block that was freed between two that are in use never serves the next one of its length.
// In training, tensors that pass lie between those that wait for the backward pass, and each leaves such a hole: a run
// of 2,000 tokens a call held 1.9 GB where 0.3 GB were in use. Here a freed piece is joined to its free neighbours, and the
// shortest piece that fits is taken, the lowest of equal ones.
//
// libc10.so finds the functions of the C library in its table of addresses. `pool_begin` puts `take` and `give` there;
// nothing else in the process sees them. Blocks below LEAST bytes, and what the range has no room for, come from the C
// library as before.

#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace {

constexpr size_t LEAST = 32 << 10;
constexpr size_t ALIGNMENT = 64;       // what torch asks for
constexpr size_t GROWTH = 32 << 20;    // the range is made readable in such steps; a multiple of a huge page
constexpr size_t HUGE_PAGE = 2 << 20;

#if defined(__aarch64__)
constexpr unsigned CALLED = R_AARCH64_JUMP_SLOT, NAMED = R_AARCH64_GLOB_DAT;
#else
constexpr unsigned CALLED = R_X86_64_JUMP_SLOT, NAMED = R_X86_64_GLOB_DAT;
#endif

size_t rounded_up(size_t size, size_t step) { return (size + step - 1) / step * step; }

size_t page_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }

class Pool {
 public:
  // Reserves addresses, which costs nothing until they are used. False where the system refuses.
  bool reserve() {
    const size_t memory = size_t(sysconf(_SC_PHYS_PAGES)) * page_bytes();
    size_ = rounded_up(2 * memory, GROWTH);
    void* found = mmap(nullptr, size_ + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return false;
    begin_ = reinterpret_cast<char*>(rounded_up(reinterpret_cast<size_t>(found), HUGE_PAGE));
    madvise(begin_, size_, MADV_HUGEPAGE);  // fewer page faults, where the system has huge pages
    top_ = touched_ = readable_ = begin_;
    return true;
  }

  bool holds(const void* place) const { return place >= begin_ && place < begin_ + size_; }

  // A piece of `size` bytes; null where there is no room for it.
  void* take(size_t size) {
    size = rounded_up(size, ALIGNMENT);
    std::lock_guard<std::mutex> lock(mutex);
    char* place = top_;
    const auto fit = free_.lower_bound({size, nullptr});
    if (fit != free_.end()) {
      const auto [whole, found] = *fit;
      place = found;
      free_.erase(fit);
      if (whole > size) {
        pieces_[place + size] = {whole - size, false, pieces_[place].dropped};
        free_.insert({whole - size, place + size});
      }
    } else if (!extend(size)) {
      return nullptr;
    }
    pieces_[place] = {size, true, false};
    return place;
  }

  void give(char* place) {
    std::lock_guard<std::mutex> lock(mutex);
    auto piece = pieces_.find(place);
    piece->second.used = false;
    const auto next = std::next(piece);
    if (next != pieces_.end() && !next->second.used) piece = joined(piece, next);
    if (piece != pieces_.begin() && !std::prev(piece)->second.used) piece = joined(std::prev(piece), piece);
    if (piece->first + piece->second.size == top_) {
      top_ = piece->first;
      pieces_.erase(piece);
    } else {
      free_.insert({piece->second.size, piece->first});
    }
  }

  // Bytes that were used and are free now, which the process still holds.
  size_t kept() {
    std::lock_guard<std::mutex> lock(mutex);
    size_t bytes = touched_ - top_;
    for (const auto& [size, place] : free_) bytes += pieces_[place].dropped ? 0 : size;
    return bytes;
  }

  // Returns the pages of free pieces to the system.
  void give_back() {
    std::lock_guard<std::mutex> lock(mutex);
    for (const auto& [size, place] : free_) {
      drop(place, place + size);
      pieces_[place].dropped = true;
    }
    drop(top_, touched_);
    touched_ = top_;
  }

  std::mutex mutex;

 private:
  struct Piece {
    size_t size;
    bool used, dropped;  // whether a tensor has it; whether its pages went back to the system
  };
  using Pieces = std::map<char*, Piece>;

  // Two neighbours that are free as one; the caller adds it to the free ones.
  Pieces::iterator joined(Pieces::iterator piece, Pieces::iterator next) {
    free_.erase({piece->second.size, piece->first});
    free_.erase({next->second.size, next->first});
    piece->second.size += next->second.size;
    piece->second.dropped &= next->second.dropped;
    pieces_.erase(next);
    return piece;
  }

  bool extend(size_t size) {
    if (size > size_t(begin_ + size_ - top_)) return false;
    if (top_ + size > readable_) {
      const size_t more = rounded_up(top_ + size - readable_, GROWTH);
      if (mprotect(readable_, more, PROT_READ | PROT_WRITE)) return false;
      readable_ += more;
    }
    top_ += size;
    if (top_ > touched_) touched_ = top_;
    return true;
  }

  static void drop(char* from, char* to) {
    const size_t first = rounded_up(reinterpret_cast<size_t>(from), page_bytes());
    const size_t last = reinterpret_cast<size_t>(to) / page_bytes() * page_bytes();
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }

  Pieces pieces_;                             // all below top_, one behind the other
  std::set<std::pair<size_t, char*>> free_;   // the free ones, the shortest first
  char *begin_ = nullptr, *top_ = nullptr, *touched_ = nullptr, *readable_ = nullptr;
  size_t size_ = 0;
};

Pool* pool;  // never destroyed: tensors may outlive everything else

int take(void** result, size_t alignment, size_t size) {
  if (size >= LEAST && alignment <= ALIGNMENT) {
    if (void* place = pool->take(size)) {
      *result = place;
      return 0;
    }
  }
  return posix_memalign(result, alignment, size);
}

void give(void* place) {
  if (pool->holds(place)) {
    pool->give(static_cast<char*>(place));
  } else {
    free(place);
  }
}

// Where a library keeps the addresses of the two functions that it calls.
class Table {
 public:
  void read(const dl_phdr_info& info) {
    for (int place = 0; place < info.dlpi_phnum; ++place) {
      const auto& part = info.dlpi_phdr[place];
      const size_t start = info.dlpi_addr + part.p_vaddr;
      if (part.p_type == PT_GNU_RELRO) read_only_begin_ = start, read_only_end_ = start + part.p_memsz;
      if (part.p_type != PT_DYNAMIC) continue;
      std::map<ElfW(Sxword), size_t> facts;
      const auto* entry = reinterpret_cast<const ElfW(Dyn)*>(start);
      for (; entry->d_tag != DT_NULL; ++entry) facts[entry->d_tag] = entry->d_un.d_val;
      read(info.dlpi_addr, facts, facts[DT_JMPREL], facts[DT_PLTRELSZ]);
      read(info.dlpi_addr, facts, facts[DT_RELA], facts[DT_RELASZ]);
    }
  }

  // Whether it has both functions, and the system lets us write there.
  bool opens() const { return !takers_.empty() && !givers_.empty() && open(takers_) && open(givers_); }

  void put(void* taker, void* giver) const {
    put(givers_, giver);  // before any piece can be given
    put(takers_, taker);
  }

 private:
  using Slots = std::set<void**>;

  static void* page_of(void** slot) {
    return reinterpret_cast<void*>(reinterpret_cast<size_t>(slot) / page_bytes() * page_bytes());
  }

  static bool open(const Slots& slots) {
    for (void** slot : slots) {
      if (mprotect(page_of(slot), page_bytes(), PROT_READ | PROT_WRITE)) return false;
    }
    return true;
  }

  void put(const Slots& slots, void* function) const {
    for (void** slot : slots) __atomic_store_n(slot, function, __ATOMIC_SEQ_CST);
    for (void** slot : slots) {
      const size_t page = reinterpret_cast<size_t>(page_of(slot));
      const bool closed = page >= read_only_begin_ / page_bytes() * page_bytes() && page + page_bytes() <= read_only_end_;
      if (closed) mprotect(page_of(slot), page_bytes(), PROT_READ);
    }
  }

  void read(size_t base, std::map<ElfW(Sxword), size_t>& facts, size_t first, size_t bytes) {
    const auto* relocation = reinterpret_cast<const ElfW(Rela)*>(first);
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(facts[DT_SYMTAB]);
    const auto* names = reinterpret_cast<const char*>(facts[DT_STRTAB]);
    for (size_t number = 0; number < bytes / sizeof *relocation; ++number, ++relocation) {
      const unsigned kind = ELF64_R_TYPE(relocation->r_info);
      if (kind != CALLED && kind != NAMED) continue;
      const char* name = names + symbols[ELF64_R_SYM(relocation->r_info)].st_name;
      auto* slot = reinterpret_cast<void**>(base + relocation->r_offset);
      if (!strcmp(name, "posix_memalign")) takers_.insert(slot);
      if (!strcmp(name, "free")) givers_.insert(slot);
    }
  }

  Slots takers_, givers_;
  size_t read_only_begin_ = 0, read_only_end_ = 0;
};

int read_if_torch(dl_phdr_info* info, size_t, void* table) {
  if (strstr(info->dlpi_name, "libc10.so")) static_cast<Table*>(table)->read(*info);
  return 0;
}

}  // namespace

// From now on large tensors are in the pool. 0 where the system or this torch does not let them.
extern "C" int pool_begin() {
  static std::mutex once;
  std::lock_guard<std::mutex> lock(once);
  if (pool) return 1;
  Table table;
  dl_iterate_phdr(read_if_torch, &table);
  auto* made = new Pool;
  if (!table.opens() || !made->reserve()) return 0;
  pool = made;
  pthread_atfork([] { pool->mutex.lock(); }, [] { pool->mutex.unlock(); }, [] { pool->mutex.unlock(); });
  table.put(reinterpret_cast<void*>(take), reinterpret_cast<void*>(give));
  return 1;
}

extern "C" int pool_holds(const void* place) { return pool && pool->holds(place); }

extern "C" size_t pool_kept() { return pool ? pool->kept() : 0; }

extern "C" void pool_give_back() {
  if (pool) pool->give_back();
}
