// NumPy arrays in and out of the emulator's global memory. Arrays of 16-bit floats travel as int16.
#pragma once

#include <pybind11/numpy.h>

#include "buffer.h"

// A copy of the array.
template <typename T>
emulator::Buffer<T> buffer(const char* name, const pybind11::array& array) {
  return {name, static_cast<const T*>(array.data()), static_cast<size_t>(array.nbytes()) / sizeof(T)};
}

// Memory as large as the array, not yet written.
template <typename T>
emulator::Buffer<T> result(const char* name, const pybind11::array& array) {
  return {name, static_cast<size_t>(array.nbytes()) / sizeof(T)};
}

// Copies what a kernel wrote, all of it, to the array.
template <typename T>
void take(const emulator::Buffer<T>& from, pybind11::array& array) {
  from.require_written();
  from.copy_to(static_cast<T*>(array.mutable_data()));
}
