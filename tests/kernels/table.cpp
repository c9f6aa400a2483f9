// Begins the pool (pool.cpp, linked to this) for a library named libc10.so, and takes memory through that library's table.

#include <dlfcn.h>
#include <stdio.h>

extern "C" int pool_begin();
extern "C" int pool_holds(const void* place);

int main(int, char** words) {
  void* library = dlopen(words[1], RTLD_NOW);
  if (!library) return puts(dlerror()), 1;
  auto take = reinterpret_cast<void* (*)(unsigned long)>(dlsym(library, "alloc_cpu"));
  auto give = reinterpret_cast<void (*)(void*)>(dlsym(library, "free_cpu"));
  void* before = take(1 << 20);
  const int began = pool_begin();
  void* after = take(1 << 20);
  printf("%d %d %d\n", began, pool_holds(before), pool_holds(after));
  give(before);
  give(after);
}
