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

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace {

constexpr size_t LEAST = 32 << 10;
constexpr size_t ALIGNMENT = 64;       // what torch asks for
constexpr size_t GROWTH = 32 << 20;    // the range is made readable in such steps

#if defined(__aarch64__)
constexpr unsigned CALLED = R_AARCH64_JUMP_SLOT, NAMED = R_AARCH64_GLOB_DAT;
#else
constexpr unsigned CALLED = R_X86_64_JUMP_SLOT, NAMED = R_X86_64_GLOB_DAT;
#endif

size_t rounded_up(size_t size, size_t step) { return (size + step - 1) / step * step; }

size_t page_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }

class Pool {
 public:
  // Reserves addresses, which costs nothing until they are used: for twice the memory of the machine, or for less where the
  // process may have no more of them. False where the system refuses.
  bool reserve() {
    const size_t memory = size_t(sysconf(_SC_PHYS_PAGES)) * page_bytes();
    for (size_ = rounded_up(2 * memory, GROWTH); size_ >= memory / 4; size_ = rounded_up(size_ / 2, GROWTH)) {
      // not MAP_NORESERVE: then the system would also grant what it does not have, and kill the process later
      void* found = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (found == MAP_FAILED) continue;
      begin_ = top_ = touched_ = readable_ = static_cast<char*>(found);
      return true;
    }
    return false;
  }

  bool holds(const void* place) const { return place >= begin_ && place < begin_ + size_; }

  // A piece of `size` bytes; null where there is no room for it.
  void* take(size_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    char* place = top_;
    const auto fit = free_.lower_bound({size, nullptr});
    if (fit != free_.end()) {
      const auto [whole, found] = *fit;
      place = found;
      free_.erase(fit);
      if (whole > size) {
        pieces_[place + size] = {whole - size, false};
        free_.insert({whole - size, place + size});
      }
    } else if (!extend(size)) {
      return nullptr;
    }
    pieces_[place] = {size, true};
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

  // Bytes of free pieces that the process still holds.
  size_t kept() {
    std::lock_guard<std::mutex> lock(mutex);
    size_t bytes = held(top_, touched_);
    for (const auto& [size, place] : free_) bytes += held(place, place + size);
    return bytes;
  }

  // Returns the pages of free pieces to the system.
  void give_back() {
    std::lock_guard<std::mutex> lock(mutex);
    for (const auto& [size, place] : free_) drop(place, place + size);
    drop(top_, touched_);
    touched_ = top_;
  }

  std::mutex mutex;

 private:
  struct Piece {
    size_t size;
    bool used;
  };
  using Pieces = std::map<char*, Piece>;

  // Two neighbours that are free as one; the caller adds it to the free ones.
  Pieces::iterator joined(Pieces::iterator piece, Pieces::iterator next) {
    free_.erase({piece->second.size, piece->first});
    free_.erase({next->second.size, next->first});
    piece->second.size += next->second.size;
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

  // The whole pages between two places.
  static std::pair<char*, size_t> pages(char* from, char* to) {
    const size_t first = rounded_up(reinterpret_cast<size_t>(from), page_bytes());
    const size_t last = reinterpret_cast<size_t>(to) / page_bytes() * page_bytes();
    return {reinterpret_cast<char*>(first), first < last ? last - first : 0};
  }

  static void drop(char* from, char* to) {
    const auto [place, size] = pages(from, to);
    if (size) madvise(place, size, MADV_DONTNEED);
  }

  static size_t held(char* from, char* to) {
    auto [place, left] = pages(from, to);
    unsigned char in_memory[1024];
    size_t count = 0;
    while (left) {
      const size_t part = std::min(left, sizeof in_memory * page_bytes());
      if (mincore(place, part, in_memory)) return 0;
      for (size_t page = 0; page < part / page_bytes(); ++page) count += in_memory[page] & 1;
      place += part, left -= part;
    }
    return count * page_bytes();
  }

  Pieces pieces_;                             // all below top_, one behind the other
  std::set<std::pair<size_t, char*>> free_;   // the free ones, the shortest first
  char *begin_ = nullptr, *top_ = nullptr, *touched_ = nullptr, *readable_ = nullptr;
  size_t size_ = 0;
};

Pool* pool;  // never destroyed: tensors may outlive everything else

int take(void** result, size_t alignment, size_t size) {
  if (pool && size >= LEAST && alignment <= ALIGNMENT) {
    if (void* place = pool->take(rounded_up(size, ALIGNMENT))) {
      *result = place;
      return 0;
    }
  }
  return posix_memalign(result, alignment, size);
}

void give(void* place) {
  if (pool && pool->holds(place)) {
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
      for (const auto tag : {DT_JMPREL, DT_RELA, DT_SYMTAB, DT_STRTAB}) {
        if (facts[tag] && facts[tag] < info.dlpi_addr) facts[tag] += info.dlpi_addr;  // not every loader has added it
      }
      read(info.dlpi_addr, facts, facts[DT_JMPREL], facts[DT_PLTRELSZ]);
      read(info.dlpi_addr, facts, facts[DT_RELA], facts[DT_RELASZ]);
    }
  }

  // Whether it has both functions.
  bool is_there() const { return !takers_.empty() && !givers_.empty(); }

  // Whether the system lets us write there.
  bool opens() const { return open(takers_) && open(givers_); }

  void put(void* taker, void* giver) const {
    put(givers_, giver);  // before any piece can be given
    put(takers_, taker);
    close(givers_);  // all slots may be on one page
    close(takers_);
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

  static void put(const Slots& slots, void* function) {
    for (void** slot : slots) __atomic_store_n(slot, function, __ATOMIC_SEQ_CST);
  }

  // Pages that the loader made read-only become so again.
  void close(const Slots& slots) const {
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

// Memory of compiled layers, in the pool where there is one: glibc would leave holes of it between what stays.
extern "C" int pool_take(void** result, size_t alignment, size_t size) { return take(result, alignment, size); }

extern "C" void pool_give(void* place) { give(place); }

// Whether this torch gets its memory as `pool_begin` expects.
extern "C" int pool_can_begin() {
  Table table;
  dl_iterate_phdr(read_if_torch, &table);
  return table.is_there();
}

// From now on large tensors are in the pool. 0 where the system or this torch does not let them.
extern "C" int pool_begin() {
  static std::mutex once;
  std::lock_guard<std::mutex> lock(once);
  if (pool) return 1;
  Table table;
  dl_iterate_phdr(read_if_torch, &table);
  static Pool* const made = new Pool;
  if (!table.is_there() || !made->reserve() || !table.opens()) return 0;
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
