/* Stands in for CUDA's libraries, so that sbp meets machines that are not here. Compiled once for each
 * library: -DDRIVER, -DNVRTC or -DBLAS. What it plays is told by variables:
 *   FAKE_DRIVER  release of the driver, such as 13000
 *   FAKE_NVRTC   major release of NVRTC
 *   FAKE_GPUS    one word a GPU: CAPABILITY,GIB,FREE, such as 90,141,120; FREE is `held` for a GPU
 *                whose context another process holds alone */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef DRIVER
enum { OK = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, UNAVAILABLE = 46 };
static int current = -1;

static int gpu(int index, int *capability, long *gib, char *free_gib) {
    const char *text = getenv("FAKE_GPUS");
    for (; text && *text; text += strcspn(text, " "), text += strspn(text, " ")) {
        if (index-- == 0) {
            return sscanf(text, "%d,%ld,%15[a-z0-9]", capability, gib, free_gib) == 3;
        }
    }
    return 0;
}

int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int *version) { *version = atoi(getenv("FAKE_DRIVER")); return OK; }
int cuDeviceGetCount(int *n) {
    int capability; long gib; char left[16];
    for (*n = 0; gpu(*n, &capability, &gib, left); (*n)++) {}
    return OK;
}
int cuDeviceGet(int *device, int index) { *device = index; return OK; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Fake %d", device); return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int capability; long gib; char left[16];
    if (!gpu(device, &capability, &gib, left)) { return INVALID_DEVICE; }
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 132;
    return OK;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    int capability; long gib; char left[16];
    if (!gpu(device, &capability, &gib, left)) { return INVALID_DEVICE; }
    *bytes = (size_t)gib << 30;
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    int capability; long gib; char left[16];
    if (!gpu(device, &capability, &gib, left)) { return INVALID_DEVICE; }
    *context = (void *)(long)(device + 1);
    return strcmp(left, "held") ? OK : UNAVAILABLE;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return device < 0; }
int cuCtxSetCurrent(void *context) { current = (int)(long)context - 1; return OK; }
int cuCtxGetCurrent(void **context) { *context = (void *)(long)(current + 1); return OK; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *bytes) {
    int capability; long gib; char left[16];
    if (!gpu(current, &capability, &gib, left)) { return INVALID_DEVICE; }
    *bytes = (size_t)gib << 30;
    *free_bytes = (size_t)atol(left) << 30;
    return OK;
}
int cuMemAlloc_v2(unsigned long long *address, size_t bytes) { *address = 1 << 20; return bytes == 0; }
int cuMemFree_v2(unsigned long long address) { return address == 0; }
int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) { *memory = malloc(bytes + flags); return OK; }
int cuMemFreeHost(void *memory) { free(memory); return OK; }
int cuMemsetD8Async(unsigned long long a, unsigned char v, size_t n, void *s) { return a == 0 && v && n && s; }
int cuMemcpyHtoDAsync_v2(unsigned long long a, const void *b, size_t n, void *s) { return a == 0 && b && n && s; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)(long)(flags + 1); return OK; }
int cuStreamSynchronize(void *stream) { return stream == 0; }
int cuStreamDestroy_v2(void *stream) { return stream == 0; }
int cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address) { return !map + !address + rank - 2; }
int cuGetErrorName(int error, const char **text) { *text = error == UNAVAILABLE ? "UNAVAILABLE" : "FAKE"; return OK; }
int cuGetErrorString(int error, const char **text) { *text = error ? "a fake error" : "none"; return OK; }
#endif

#ifdef NVRTC
int nvrtcVersion(int *major, int *minor) { *major = atoi(getenv("FAKE_NVRTC")); *minor = 0; return 0; }
int nvrtcGetNumSupportedArchs(int *n) { *n = 3; return 0; }
int nvrtcGetSupportedArchs(int *archs) { archs[0] = 80; archs[1] = 90; archs[2] = 100; return 0; }
int nvrtcCreateProgram(void **program, const char *text, const char *name, int n, void *a, void *b) {
    *program = (void *)1;
    return !text + !name + (n < 1) + !a + !b;
}
int nvrtcCompileProgram(void *program, int n, void *options) { return program && n && options ? 6 : 1; }
int nvrtcGetProgramLogSize(void *program, size_t *size) { *size = 5; return !program; }
int nvrtcGetProgramLog(void *program, char *log) { memcpy(log, "fake", 5); return !program; }
int nvrtcDestroyProgram(void **program) { *program = 0; return 0; }
const char *nvrtcGetErrorString(int error) { return error ? "fake" : "none"; }
#endif

#ifdef BLAS
int cublasLtCreate(void **handle) { *handle = (void *)1; return 0; }
int cublasLtDestroy(void *handle) { return !handle; }
#endif
