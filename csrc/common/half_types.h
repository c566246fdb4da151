// bfloat16 and float16 as bits, with conversions from and to float (round to nearest even), free of torch and of
// hardware support.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// Files compiled for different instruction sets include this header: were these functions not inlined, the linker would
// keep one copy for all, perhaps one that the processor cannot run.
#define ZOOMZERO_ALWAYS_INLINE [[gnu::always_inline]] inline

namespace zoomzero {

struct BFloat16Bits {
  uint16_t bits;
};

struct Float16Bits {
  uint16_t bits;
};

template <typename T>
inline T from_float(float value);

template <>
ZOOMZERO_ALWAYS_INLINE float from_float<float>(float value) {
  return value;
}

template <>
ZOOMZERO_ALWAYS_INLINE BFloat16Bits from_float<BFloat16Bits>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return {0x7FC0};
  return {static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}

template <>
ZOOMZERO_ALWAYS_INLINE Float16Bits from_float<Float16Bits>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return {static_cast<uint16_t>(sign | 0x7E00)};
  if (magnitude >= 0x477FF000) return {static_cast<uint16_t>(sign | 0x7C00)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {                                                // below 2^-14: subnormal, units of 2^-24
    const float units = std::bit_cast<float>(magnitude) * 16777216.0f;
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(units)))};
  }
  const uint32_t rounded = magnitude + 0xFFF + ((magnitude >> 13) & 1);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13))};
}

ZOOMZERO_ALWAYS_INLINE float to_float(float value) { return value; }

ZOOMZERO_ALWAYS_INLINE float to_float(BFloat16Bits value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

ZOOMZERO_ALWAYS_INLINE float to_float(Float16Bits value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1F;
  const uint32_t mantissa = value.bits & 0x3FF;
  if (exponent == 0) {
    const float units = static_cast<float>(mantissa) / 16777216.0f;
    return sign != 0 ? -units : units;
  }
  const uint32_t exponent_bits = exponent == 31 ? 0x7F800000 : (exponent + 112) << 23;
  return std::bit_cast<float>(sign | exponent_bits | (mantissa << 13));
}

}  // namespace zoomzero
