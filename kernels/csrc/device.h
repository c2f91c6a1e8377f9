// What the host asks about the current device, and launches that start before the stream's previous kernel ends. Part of
// primitives.h.
#pragma once

namespace kvb {

#ifdef __CUDACC__

// Multiprocessors of the current device; 1 after an error, which the launch will report.
inline int multiprocessors() {
    int device = 0, number = 1;
    if (cudaGetDevice(&device) == cudaSuccess)
        cudaDeviceGetAttribute(&number, cudaDevAttrMultiProcessorCount, device);
    return number;
}

// Number of CTAs of `kernel` that fill the current device; if negative, minus a cudaError.
template <typename Kernel>
inline int resident_ctas(Kernel kernel, int threads, int shared_bytes = 0) {
    int each = 0;  // of a multiprocessor
    const auto bytes = static_cast<std::size_t>(shared_bytes);
    const auto error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, bytes);
    return error == cudaSuccess ? multiprocessors() * each : -static_cast<int>(error);
}

// Shared memory that a CTA can have on the current device, in bytes; 0 after an error, which the launch will report.
inline int most_shared_bytes() {
    int device = 0, bytes = 0;
    if (cudaGetDevice(&device) == cudaSuccess)
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return bytes;
}

// Launch a kernel that waits on the device for the previous one. GPUs before compute capability 9.0 cannot do that.
template <typename... Parameters, typename... Arguments>
inline void launch_early(void (*kernel)(Parameters...), int grid, int block, std::size_t shared_bytes,
                         cudaStream_t stream, const Arguments&... arguments) {
    int device = 0, major = 0;
    if (cudaGetDevice(&device) == cudaSuccess)
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid));
    config.blockDim = dim3(static_cast<unsigned>(block));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = major >= 9 ? 1 : 0;
    cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

#else

template <typename Kernel>
inline int resident_ctas(Kernel, int, int = 0) {
    return 3;  // small and odd, so that work is split at other places than on a device
}

inline int multiprocessors() { return 3; }
inline int most_shared_bytes() { return static_cast<int>(kvb_host::kAllShared); }

#endif

}  // namespace kvb
