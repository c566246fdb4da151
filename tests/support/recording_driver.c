/* Stands in for libcuda.so.1 where there is no GPU: answers what Triton's own launcher asks, and keeps what it would
 * hand to the GPU at a launch. Test only; see recorded_launches.py. */
#include <string.h>

typedef struct {
  unsigned grid[3], block[3], shared_bytes;
} Launch;

/* The layout of CUlaunchConfig up to what is read here. */
typedef struct {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
} LaunchConfig;

static int sizes[64], num_parameters;
static unsigned char bytes[64 * 8];
static Launch last;

/* Sizes of the parameters of the launches to come: the driver knows them from the kernel, the test from its signature.
 */
void expect_parameters(int count, const int* given) {
  num_parameters = count;
  memcpy(sizes, given, sizeof(int) * (size_t)count);
}
const unsigned char* recorded_bytes(void) { return bytes; }
const Launch* recorded_launch(void) { return &last; }

int cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void** extra) {
  (void)function, (void)extra;
  last = (Launch){{config->grid_x, config->grid_y, config->grid_z},
                  {config->block_x, config->block_y, config->block_z},
                  config->shared_bytes};
  unsigned char* to = bytes;
  for (int i = 0; i < num_parameters; ++i) {
    memcpy(to, parameters[i], (size_t)sizes[i]);
    to += sizes[i];
  }
  return 0;
}

/* A device attribute or a property of a function: large enough for every check, and no more than an H100's shared
 * memory. */
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)attribute, (void)device;
  *value = 227 * 1024;
  return 0;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  (void)attribute, (void)function;
  *value = 1024;
  return 0;
}
int cuPointerGetAttribute(unsigned long long* value, int attribute, unsigned long long pointer) {
  (void)attribute;
  *value = pointer;
  return 0;
}
int cuCtxGetCurrent(void** context) {
  *context = &last;
  return 0;
}
int cuGetErrorString(int code, const char** text) {
  (void)code;
  *text = "the recording driver does not fail";
  return 0;
}

/* Nothing to do. */
#define ACCEPT(name) \
  int name(void) { return 0; }
ACCEPT(cuCtxGetDevice)
ACCEPT(cuCtxGetLimit)
ACCEPT(cuCtxSetCurrent)
ACCEPT(cuCtxSetLimit)
ACCEPT(cuDeviceGet)
ACCEPT(cuDevicePrimaryCtxRetain)
ACCEPT(cuFuncSetAttribute)
ACCEPT(cuFuncSetCacheConfig)
ACCEPT(cuModuleGetFunction)
ACCEPT(cuModuleLoadData)
ACCEPT(cuModuleUnload)
ACCEPT(cuPointerGetAttributes)

/* A driver for CUDA 12.8, older than the build. */
int cuDriverGetVersion(int* version) {
  *version = 12080;
  return 0;
}
