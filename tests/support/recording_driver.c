/* Stands in for libcuda.so.1 where there is no GPU: answers what launchers ask (Triton's, and ours of kernels that
 * NVRTC compiled), and keeps what they would hand to the GPU. Test only; see recorded_launches.py and
 * test_cuda_kernels.py. */
#include <stdlib.h>
#include <string.h>

typedef struct {
  unsigned grid[3], block[3], shared_bytes;
} Launch;

/* The layout of CUlaunchConfig up to what is read here. */
typedef struct {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
} LaunchConfig;

static int sizes[64], num_parameters;
static unsigned char bytes[4096];
static Launch last;
static char loaded[4], name[512];

/* Sizes of the parameters of the launches to come: the driver knows them from the kernel, the test from its signature.
 */
void expect_parameters(int count, const int* given) {
  num_parameters = count;
  memcpy(sizes, given, sizeof(int) * (size_t)count);
}
const unsigned char* recorded_bytes(void) { return bytes; }
const Launch* recorded_launch(void) { return &last; }
/* The first bytes of the image loaded last, and the name of the function taken from it. */
const char* recorded_image(void) { return loaded; }
const char* recorded_name(void) { return name; }

static int record(Launch launch, void** parameters) {
  last = launch;
  unsigned char* to = bytes;
  for (int i = 0; i < num_parameters; ++i) {
    memcpy(to, parameters[i], (size_t)sizes[i]);
    to += sizes[i];
  }
  return 0;
}

int cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void** extra) {
  (void)function, (void)extra;
  const Launch launch = {{config->grid_x, config->grid_y, config->grid_z},
                         {config->block_x, config->block_y, config->block_z},
                         config->shared_bytes};
  return record(launch, parameters);
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                   void** extra) {
  (void)function, (void)stream, (void)extra;
  const Launch launch = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes};
  return record(launch, parameters);
}

int cuModuleLoadData(void** module, const void* image) {
  *module = loaded;
  memcpy(loaded, image, sizeof(loaded));
  return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* wanted) {
  (void)module;
  *function = name;
  strncpy(name, wanted, sizeof(name) - 1);
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
ACCEPT(cuCtxPopCurrent_v2)
ACCEPT(cuCtxPushCurrent_v2)
ACCEPT(cuCtxSetCurrent)
ACCEPT(cuCtxSetLimit)
ACCEPT(cuDeviceGet)
ACCEPT(cuDevicePrimaryCtxRetain)
ACCEPT(cuFuncSetAttribute)
ACCEPT(cuFuncSetCacheConfig)
ACCEPT(cuModuleUnload)
ACCEPT(cuPointerGetAttributes)

/* A driver for CUDA 12.8, older than the build, unless the environment asks for another. */
int cuDriverGetVersion(int* version) {
  const char* wanted = getenv("RECORDED_DRIVER");
  *version = wanted == NULL ? 12080 : atoi(wanted);
  return 0;
}
