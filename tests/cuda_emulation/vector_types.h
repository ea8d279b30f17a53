// CUDA's small vectors: the same names, sizes and alignments.
#pragma once

#define CUDA_EMULATION_VECTOR(type, name, align2, align4)                     \
  struct name##1 { type x; };                                                 \
  struct alignas(align2) name##2 { type x, y; };                              \
  struct name##3 { type x, y, z; };                                           \
  struct alignas(align4) name##4 { type x, y, z, w; };                        \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_EMULATION_VECTOR(signed char, char, 2, 4)
CUDA_EMULATION_VECTOR(unsigned char, uchar, 2, 4)
CUDA_EMULATION_VECTOR(short, short, 4, 8)
CUDA_EMULATION_VECTOR(unsigned short, ushort, 4, 8)
CUDA_EMULATION_VECTOR(int, int, 8, 16)
CUDA_EMULATION_VECTOR(unsigned, uint, 8, 16)
CUDA_EMULATION_VECTOR(long long, longlong, 16, 16)
CUDA_EMULATION_VECTOR(unsigned long long, ulonglong, 16, 16)
CUDA_EMULATION_VECTOR(float, float, 8, 16)
CUDA_EMULATION_VECTOR(double, double, 16, 16)
#undef CUDA_EMULATION_VECTOR

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3() = default;
  constexpr dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
