//! Device kernels of psim: micro-benchmarks and executor operators on CPU and CUDA.
