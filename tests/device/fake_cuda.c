// A driver without a card: managed memory is the process's own, and what is asked for is counted.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { OK = 0, OUT_OF_MEMORY = 2, ALREADY_REGISTERED = 712, MOST = 4096 };
static int attributes[128];
static size_t free_nbytes = (size_t)64 << 30;
static struct { uint64_t address; size_t nbytes; unsigned attached; } blocks[MOST];
static struct { uint64_t address; size_t nbytes; } registered[MOST];
static size_t advised[16][2], prefetched[2], copied_on_device;

void fake_set(int attribute, int value) { attributes[attribute] = value; }
void fake_set_free(size_t nbytes) { free_nbytes = nbytes; }
size_t fake_advised(int advice, int on_cpu) { return advised[advice][on_cpu]; }
size_t fake_prefetched(int to_cpu) { return prefetched[to_cpu]; }
size_t fake_copied_on_device(void) { return copied_on_device; }
size_t fake_attached(uint64_t address) {
  for (int i = 0; i < MOST; i++)
    if (blocks[i].address == address) return blocks[i].attached;
  return 0;
}
size_t fake_registered(uint64_t address) {  // bytes of the range that it is in
  for (int i = 0; i < MOST; i++)
    if (address >= registered[i].address && address < registered[i].address + registered[i].nbytes)
      return registered[i].nbytes;
  return 0;
}
size_t fake_n_registered(void) {
  size_t n = 0;
  for (int i = 0; i < MOST; i++) n += registered[i].nbytes != 0;
  return n;
}
size_t fake_n_blocks(void) {
  size_t n = 0;
  for (int i = 0; i < MOST; i++) n += blocks[i].address != 0;
  return n;
}

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attributes[attribute];
  return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
int cuCtxPushCurrent_v2(void *context) { return context == (void *)1 ? OK : 201; }
int cuCtxPopCurrent_v2(void **context) { return OK; }
int cuCtxSynchronize(void) { return OK; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = free_nbytes; *total = free_nbytes; return OK; }
int cuMemAllocManaged(uint64_t *address, size_t nbytes, unsigned flags) {
  void *memory = mmap(0, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return OUT_OF_MEMORY;
  memset(memory, 0xa5, nbytes < 4096 ? nbytes : 4096);  // its contents are undefined
  for (int i = 0; i < MOST; i++)
    if (!blocks[i].address) {
      blocks[i].address = *address = (uint64_t)memory;
      blocks[i].nbytes = nbytes;
      return OK;
    }
  return OUT_OF_MEMORY;
}
int cuMemFree_v2(uint64_t address) {
  for (int i = 0; i < MOST; i++)
    if (blocks[i].address == address) {
      munmap((void *)address, blocks[i].nbytes);
      blocks[i].address = 0;
      return OK;
    }
  return 1;
}
int cuMemAdvise(uint64_t address, size_t nbytes, int advice, int where) {
  if (address % 4096 || nbytes % 4096) return 1;
  advised[advice][where == -1] += nbytes;
  return OK;
}
int cuStreamAttachMemAsync(void *stream, uint64_t address, size_t nbytes, unsigned flags) {
  for (int i = 0; i < MOST; i++)
    if (blocks[i].address && blocks[i].address == address && nbytes == 0) {
      blocks[i].attached = flags;
      return OK;
    }
  return 1;
}
int cuMemPrefetchAsync(uint64_t address, size_t nbytes, int where, void *stream) {
  prefetched[where == -1] += nbytes;
  return OK;
}
int cuMemHostRegister_v2(void *address, size_t nbytes, unsigned flags) {
  uint64_t begin = (uint64_t)address;
  if (begin % 4096 || nbytes % 4096 || !nbytes) return 1;
  for (int i = 0; i < MOST; i++)
    if (registered[i].nbytes && begin < registered[i].address + registered[i].nbytes && registered[i].address < begin + nbytes)
      return ALREADY_REGISTERED;
  for (int i = 0; i < MOST; i++)
    if (!registered[i].nbytes) {
      registered[i].address = begin;
      registered[i].nbytes = nbytes;
      return OK;
    }
  return OUT_OF_MEMORY;
}
int cuMemHostUnregister(void *address) {
  for (int i = 0; i < MOST; i++)
    if (registered[i].nbytes && registered[i].address == (uint64_t)address) {
      registered[i].nbytes = 0;
      return OK;
    }
  return 1;
}
int cuMemcpy(uint64_t target, uint64_t source, size_t nbytes) {
  memmove((void *)target, (void *)source, nbytes);
  return OK;
}
int cuMemcpyDtoD_v2(uint64_t target, uint64_t source, size_t nbytes) {
  copied_on_device += nbytes;
  return cuMemcpy(target, source, nbytes);
}
int cuMemcpyHtoD_v2(uint64_t target, const void *source, size_t nbytes) {
  memmove((void *)target, source, nbytes);
  return OK;
}
int cuMemsetD8_v2(uint64_t address, unsigned char value, size_t nbytes) {
  memset((void *)address, value, nbytes);
  return OK;
}
int cuGetErrorName(int status, const char **text) { *text = "CUDA_ERROR_FAKE"; return OK; }
