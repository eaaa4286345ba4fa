// Products of tensor cores under the emulator, and kernels with mistakes that it has to find. Arrays of 16-bit floats
// travel as integers.
#include "emulator.h"
// kernel text and what it includes comes after the emulator
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>
#include <stdexcept>
#include <string>

#include "mma.h"

namespace py = pybind11;

namespace {

constexpr int kWarps = 2;  // of a block that multiplies
constexpr int kThreads = 32 * kWarps;

// Two operands as they lie in memory: rows of `stride` elements.
struct Layout {
  int a_rows, a_stride, b_rows, b_stride;

  int a_count() const { return a_rows * a_stride; }
  int b_count() const { return b_rows * b_stride; }
};

template <typename T, class Array>
__device__ void fill(const Array& array, int index, const T* from, int count) {
  constexpr int kCount = 16 / sizeof(T);
  for (int i = threadIdx.x * kCount; i < count; i += blockDim.x * kCount)
    iact::store16(array, index + i, iact::load<T, kCount>(from + i));
}

template <int kColumns>
__device__ void load_sum(float (&sum)[kColumns / 8][4], const float* from) {
  for (int j = 0; j < kColumns / 8; ++j)
    for (int i = 0; i < 4; ++i) sum[j][i] = from[iact::row_of(i) * kColumns + iact::column_of(j, i)];
}

template <int kColumns>
__device__ void store_sum(const float (&sum)[kColumns / 8][4], float* to) {
  for (int j = 0; j < kColumns / 8; ++j)
    for (int i = 0; i < 4; ++i) to[iact::row_of(i) * kColumns + iact::column_of(j, i)] = sum[j][i];
}

// out [16 kWarps, kColumns] += A B, every warp its 16 rows.
template <typename T, int kColumns, int kDepth, bool kATransposed, bool kBRows>
__global__ void multiply(const T* a, const T* b, Layout layout, float* out) {
  IACT_DYNAMIC_SHARED(T, operands);
  const int row = threadIdx.x / 32 * 16;
  fill(operands, 0, a, layout.a_count());
  fill(operands, layout.a_count(), b, layout.b_count());
  __syncthreads();
  float sum[kColumns / 8][4];
  load_sum<kColumns>(sum, out + row * kColumns);
  const int a_index = kATransposed ? row : row * layout.a_stride;
  iact::multiply<T, kColumns, kDepth, kATransposed, kBRows>(sum, operands, a_index, layout.a_stride, operands,
                                                            layout.a_count(), layout.b_stride);
  store_sum<kColumns>(sum, out + row * kColumns);
}

// out [16, kColumns] = (A B) C by one warp, A B [16, 32] rounded to T and kept in registers; A [16, 16] and B [16, 32]
// lie in rows of 24 elements, those of B one for a column.
template <typename T, int kColumns, bool kRows>
__global__ void chain(const T* a, const T* b, const T* c, float* out) {
  constexpr int kStride = (kRows ? kColumns : 32) + 8, kCount = (kRows ? 32 : kColumns) * kStride;
  IACT_SHARED(T, a_tile, 16 * 24);
  IACT_SHARED(T, b_tile, 32 * 24);
  IACT_SHARED(T, c_tile, kCount);
  fill(a_tile, 0, a, 16 * 24);
  fill(b_tile, 0, b, 32 * 24);
  fill(c_tile, 0, c, kCount);
  __syncthreads();
  float product[4][4] = {}, sum[kColumns / 8][4] = {};
  iact::multiply<T, 32, 16>(product, a_tile, 0, 24, b_tile, 0, 24);
  for (int k = 0; k < 32; k += 16) {
    const auto operand = iact::operand_of<T>(product[k / 8], product[k / 8 + 1]);
    iact::multiply_registers<T, kColumns, kRows>(sum, operand, c_tile, kRows ? k * kStride : k, kStride);
  }
  store_sum<kColumns>(sum, out);
}

enum class Mistake {
  none,
  no_barrier,
  half_a_warp,
  two_places,
  misaligned,
  outside,
  wait_for_less,
  no_groups,
  misaligned_source,
  overwrite,
};

// out [16, 16] = X X^T by one warp, by way of accumulators: every lane writes and then loads the very same elements.
template <Mistake kMistake>
__global__ void square(const float* x, float* out) {
  using T = c10::BFloat16;
  IACT_SHARED(T, tile, 16 * 24);
  float start[2][4], sum[2][4] = {};
  load_sum<16>(start, x);
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 4; ++i) tile[24 * iact::row_of(i) + iact::column_of(j, i)] = start[j][i];
  if (kMistake != Mistake::no_barrier) __syncwarp();
  const int index = kMistake == Mistake::misaligned ? 4 : kMistake == Mistake::outside ? 16 : 0;
  if (kMistake == Mistake::half_a_warp && threadIdx.x < 16) return;
  if (kMistake == Mistake::two_places && threadIdx.x < 16) {
    iact::multiply<T, 16, 16>(sum, tile, index, 24, tile, 0, 24);
  } else {
    iact::multiply<T, 16, 16>(sum, tile, index, 24, tile, 0, 24);
  }
  store_sum<16>(sum, out);
}

// out = x, by way of shared memory, the next 256 floats on their way while threads write out those that others copied.
template <Mistake kMistake>
__global__ void pipeline(const float* x, float* out) {
  constexpr int kStages = 5, kFloats = 4 * kThreads;
  IACT_SHARED(float, tiles, 2 * kFloats);
  const int mine = 4 * threadIdx.x, other = (mine + kFloats / 2) % kFloats;
  const auto start = [&](int stage) {
    const int place = mine + (kMistake == Mistake::misaligned) + (kMistake == Mistake::outside ? kFloats : 0);
    if (stage < kStages)
      iact::copy_async16(tiles, stage % 2 * kFloats + place,
                         x + stage * kFloats + mine + (kMistake == Mistake::misaligned_source));
    if (kMistake != Mistake::no_groups) iact::commit_copies();
  };
  start(0);
  for (int stage = 0; stage < kStages; ++stage) {
    start(stage + 1);
    iact::wait_copies<kMistake == Mistake::wait_for_less ? 2 : 1>();
    if (kMistake != Mistake::no_barrier) __syncthreads();
    const auto arrived = iact::unpack<float, 4>(iact::load16(tiles, stage % 2 * kFloats + other));
    iact::store(arrived, out + stage * kFloats + other);
    if (kMistake != Mistake::overwrite) __syncthreads();
  }
}

template <typename T>
emulator::Buffer<T> buffer(const char* name, const py::array& array) {
  return {name, static_cast<const T*>(array.data()), static_cast<size_t>(array.nbytes()) / sizeof(T)};
}

// Calls work(T()) with the type of that name.
template <typename Work>
void with_dtype(const std::string& dtype, const Work& work) {
  if (dtype == "float32") return work(float());
  if (dtype == "bfloat16") return work(c10::BFloat16());
  return work(c10::Half());
}

template <typename Work>
void with_flag(bool flag, const Work& work) {
  if (flag) return work(std::true_type());
  return work(std::false_type());
}

template <int kColumns, int kDepth, typename Work>
bool with_shape(int columns, int depth, const Work& work) {
  if (columns != kColumns || depth != kDepth) return false;
  work(std::integral_constant<int, kColumns>(), std::integral_constant<int, kDepth>());
  return true;
}

// Calls work(columns, depth) with both as constants.
template <typename Work>
void with_listed_shape(int columns, int depth, const Work& work) {
  if (!(with_shape<8, 16>(columns, depth, work) || with_shape<16, 48>(columns, depth, work) ||
        with_shape<24, 64>(columns, depth, work) || with_shape<48, 144>(columns, depth, work) ||
        with_shape<64, 16>(columns, depth, work) || with_shape<144, 48>(columns, depth, work)))
    throw std::invalid_argument("no kernel of that shape");
}

using Numbers = py::array_t<float, py::array::c_style>;

// out += A B; a and b are matrices as they lie in memory.
void run_multiply(const std::string& dtype, int columns, int depth, bool a_transposed, bool b_rows, const py::array& a,
                  const py::array& b, Numbers& out, uint64_t seed) {
  const Layout layout{int(a.shape(0)), int(a.shape(1)), int(b.shape(0)), int(b.shape(1))};
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto left = buffer<T>("a", a), right = buffer<T>("b", b);
    auto result = buffer<float>("out", out);
    const emulator::Launch launch{1, kThreads, (layout.a_count() + layout.b_count()) * sizeof(T), seed};
    with_listed_shape(columns, depth, [&](auto columns, auto depth) {
      with_flag(a_transposed, [&](auto a_transposed) {
        with_flag(b_rows, [&](auto b_rows) {
          emulator::run(launch, [&] {
            multiply<T, columns, depth, a_transposed, b_rows>(left.data(), right.data(), layout, result.data());
          });
        });
      });
    });
    result.copy_to(out.mutable_data());
  });
}

// 24 columns of C.
Numbers run_chain(const std::string& dtype, bool rows, const py::array& a, const py::array& b, const py::array& c) {
  Numbers out({16, 24});
  emulator::Buffer<float> result("out", out.size());
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto left = buffer<T>("a", a), middle = buffer<T>("b", b), right = buffer<T>("c", c);
    with_flag(rows, [&](auto rows) {
      emulator::run({1, 32}, [&] { chain<T, 24, rows>(left.data(), middle.data(), right.data(), result.data()); });
    });
  });
  result.copy_to(out.mutable_data());
  return out;
}

using Kernel = void (*)(const float*, float*);
struct Planted {
  Kernel kernel;
  unsigned threads;
};

#define SQUARE(mistake) {"square " #mistake, {square<Mistake::mistake>, 32}}
#define PIPELINE(mistake) {"pipeline " #mistake, {pipeline<Mistake::mistake>, kThreads}}
const std::map<std::string, Planted> planted = {
    SQUARE(none),
    SQUARE(no_barrier),
    SQUARE(half_a_warp),
    SQUARE(two_places),
    SQUARE(misaligned),
    SQUARE(outside),
    PIPELINE(none),
    PIPELINE(no_barrier),
    PIPELINE(overwrite),
    PIPELINE(misaligned),
    PIPELINE(misaligned_source),
    PIPELINE(outside),
    PIPELINE(wait_for_less),
    PIPELINE(no_groups),
};

// As many results as numbers.
Numbers run_planted(const std::string& name, const Numbers& x, uint64_t seed) {
  const Planted& chosen = planted.at(name);
  const auto source = buffer<float>("x", x);
  emulator::Buffer<float> result("out", x.size());
  emulator::run({1, chosen.threads, 0, seed}, [&] { chosen.kernel(source.data(), result.data()); });
  Numbers out(x.size());
  result.copy_to(out.mutable_data());
  return out;
}

}  // namespace

PYBIND11_MODULE(products, m) {
  m.def("multiply", &run_multiply);
  m.def("chain", &run_chain);
  m.def("planted", &run_planted);
}
