// What TensorRT asks of a plugin while it builds and loads a plan, asked here without it: only its headers are needed.
//
//   plugin libmcdrl_rt_plugin.so [libnvinfer_lean.so]
//
// With the second library, a runtime of TensorRT's own, the plugins come out of its registry. Where there is a GPU, they
// are run there as well, against the same in float64. Ends with 0, or names what is wrong.
#include <NvInfer.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

using namespace nvinfer1;

#define CHECK(holds)                                             \
  if (!(holds)) {                                                \
    std::printf("line %d: %s does not hold\n", __LINE__, #holds); \
    std::exit(1);                                                \
  }

// What the plugin complains of.
struct Log final : ILogger, ILoggerFinder {
  void log(Severity, const char* message) noexcept override { said = message; }
  ILogger* findLogger() override { return this; }
  bool takes(int32_t status, const char* refusal = nullptr) {  // without a GPU, every shape that fits ends there
    const bool fits = status == 0 || said.find("there is no GPU") != std::string::npos;
    return refusal ? status != 0 && said.find(refusal) != std::string::npos : fits;
  }
  std::string said;
} complaints;

// A dimension is a number here; an open one is a large prime, which survives into what is computed of it.
constexpr int64_t kBatch = 1009;

struct Dimension final : IDimensionExpr, apiv::VDimensionExpr {
  explicit Dimension(int64_t value) : value(value) { IDimensionExpr::mImpl = this; }
  bool isConstant() const noexcept override { return value != kBatch; }
  int64_t getConstantValue() const noexcept override { return value; }
  bool isSizeTensor() const noexcept override { return false; }
  int64_t value;
};

struct Builder final : IExprBuilder, apiv::VExprBuilder {
  Builder() { IExprBuilder::mImpl = this; }
  const IDimensionExpr* constant(int64_t value) noexcept override {
    kept.push_back(std::make_unique<Dimension>(value));
    return kept.back().get();
  }
  const IDimensionExpr* operation(DimensionOperation what, const IDimensionExpr& a,
                                  const IDimensionExpr& b) noexcept override {
    CHECK(what == DimensionOperation::kFLOOR_DIV);
    return constant(a.getConstantValue() / b.getConstantValue());
  }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) noexcept override {
    return nullptr;
  }
  std::vector<std::unique_ptr<Dimension>> kept;
};

using Shapes = std::vector<std::vector<int64_t>>;

Dims dims(const std::vector<int64_t>& shape) {
  Dims result{};
  result.nbDims = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) result.d[i] = shape[i];
  return result;
}

std::vector<PluginTensorDesc> described(const Shapes& shapes, const std::vector<DataType>& types) {
  std::vector<PluginTensorDesc> result;
  for (size_t i = 0; i < shapes.size(); ++i) result.push_back({dims(shapes[i]), types[i], TensorFormat::kLINEAR, 1.f});
  return result;
}

std::vector<DynamicPluginTensorDesc> ranges(const Shapes& shapes, const std::vector<DataType>& types) {
  std::vector<DynamicPluginTensorDesc> result;
  for (const auto& desc : described(shapes, types)) result.push_back({desc, desc.dims, desc.dims, desc.dims});
  return result;
}

template <typename T>
T* part(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<T*>(plugin->getCapabilityInterface(type));
}

// Shapes of inputs and outputs with B frames, T tokens, width d, K classes, heads·M columns, N selected.
Shapes inputs_of(bool select, int64_t batch, int64_t dim = 256) {
  Shapes result{{batch, 49, dim}, {96, dim}, {96}, {dim, 96}};
  if (select) result.insert(result.begin() + 1, {5, dim});
  return result;
}
Shapes outputs_of(bool select, int64_t batch) {
  return select ? Shapes{{batch, 20, 256}, {batch, 20}, {batch, 20, 12}} : Shapes{{batch, 49, 256}, {batch, 49, 12}};
}
std::vector<DataType> types_of(bool select, DataType type) {
  std::vector<DataType> result(select ? 6 : 5, type);
  if (select) result.push_back(DataType::kINT64);
  result.push_back(DataType::kFLOAT);
  return result;
}

void check_types(IPluginV3OneBuild* build, bool select) {
  for (DataType type : {DataType::kHALF, DataType::kBF16}) {
    const std::vector<DataType> types = types_of(select, type);
    const int32_t in = select ? 5 : 4, out = build->getNbOutputs();
    std::vector<DataType> given(out);
    CHECK(build->getOutputDataTypes(given.data(), out, types.data(), in) == 0);
    for (int32_t i = 0; i < out; ++i) CHECK(given[i] == types[in + i]);

    Shapes shapes = inputs_of(select, 2);
    for (const auto& shape : outputs_of(select, 2)) shapes.push_back(shape);
    std::vector<DynamicPluginTensorDesc> all = ranges(shapes, types);
    for (int32_t place = 0; place < in + out; ++place) {
      CHECK(build->supportsFormatCombination(place, all.data(), in, out));
      const DynamicPluginTensorDesc right = all[place];
      all[place].desc.type = DataType::kINT32;
      CHECK(!build->supportsFormatCombination(place, all.data(), in, out));
      all[place] = right;
      all[place].desc.format = TensorFormat::kCHW32;
      CHECK(!build->supportsFormatCombination(place, all.data(), in, out));
      all[place] = right;
    }
  }
  const auto wide = ranges(inputs_of(select, 2), types_of(select, DataType::kFLOAT));
  CHECK(!build->supportsFormatCombination(0, wide.data(), select ? 5 : 4, build->getNbOutputs()));
}

void check_shapes(IPluginV3OneBuild* build, IPluginV3OneRuntime* runtime, bool select) {
  Builder expressions;
  std::vector<DimsExprs> inputs, outputs(build->getNbOutputs());
  for (const auto& shape : inputs_of(select, kBatch)) {
    inputs.emplace_back();
    inputs.back().nbDims = static_cast<int32_t>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) inputs.back().d[i] = expressions.constant(shape[i]);
  }
  const auto count = static_cast<int32_t>(inputs.size());
  const int32_t status =
      build->getOutputShapes(inputs.data(), count, nullptr, 0, outputs.data(), build->getNbOutputs(), expressions);
  CHECK(status == 0);
  const Shapes expected = outputs_of(select, kBatch);
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(outputs[i].nbDims == static_cast<int32_t>(expected[i].size()));
    for (size_t j = 0; j < expected[i].size(); ++j) CHECK(outputs[i].d[j]->getConstantValue() == expected[i][j]);
  }

  const auto small = described(inputs_of(select, 1), types_of(select, DataType::kHALF));
  const auto range = ranges(inputs_of(select, 64), types_of(select, DataType::kHALF));
  const size_t workspace = build->getWorkspaceSize(range.data(), count, nullptr, 0);
  CHECK(workspace > 0 && workspace < (size_t{1} << 26));
  CHECK(complaints.takes(runtime->onShapeChange(small.data(), count, nullptr, build->getNbOutputs())));
  const auto odd = described(inputs_of(select, 1, 200), types_of(select, DataType::kHALF));
  CHECK(complaints.takes(runtime->onShapeChange(odd.data(), count, nullptr, build->getNbOutputs()), "multiple of 32"));
}

constexpr int kHeads = 8, kConfounders = 12, kCount = 20;
constexpr float kEps = 1e-3f;
using Numbers = std::vector<double>;

int64_t volume(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

// Numbers about zero that float16 has.
Numbers draw(int64_t count, double scale, std::mt19937& generator) {
  std::normal_distribution<float> normal;
  Numbers result(count);
  for (double& x : result) x = __half2float(__float2half(static_cast<float>(scale) * normal(generator)));
  return result;
}

double dot(const double* one, const double* other, int64_t count) {
  return std::inner_product(one, one + count, other, 0.0);
}

// The most like a text first, ties to the lower index; the scores beside.
std::vector<int64_t> selected(const double* features, const Numbers& texts, int64_t tokens, int64_t dim, Numbers& scores) {
  const auto size = [&](const double* x) { return std::sqrt(dot(x, x, dim)); };
  scores.assign(tokens, -2);
  for (int64_t t = 0; t < tokens; ++t)
    for (const double* e = texts.data(); e < texts.data() + texts.size(); e += dim)
      scores[t] = std::max(scores[t], dot(features + t * dim, e, dim) / size(features + t * dim) / size(e));
  std::vector<int64_t> order(tokens);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t one, int64_t other) { return scores[one] > scores[other]; });
  return order;
}

// A token and its intervention, and the readout.
void intervene(const double* f, const Numbers& a, const Numbers& c, const Numbers& b, int64_t dim, double* out, double* readout) {
  constexpr int kColumns = kHeads * kConfounders;
  const double mean = std::accumulate(f, f + dim, 0.0) / dim, variance = dot(f, f, dim) / dim - mean * mean;
  double weights[kColumns];
  Numbers normed(f, f + dim);
  for (double& x : normed) x = (x - mean) / std::sqrt(variance + kEps);
  for (int i = 0; i < kColumns; ++i) weights[i] = std::exp(dot(normed.data(), a.data() + i * dim, dim) + c[i]);
  std::fill(readout, readout + kConfounders, 0.0);
  for (int head = 0; head < kHeads; ++head) {
    double* own = weights + head * kConfounders;
    const double sum = std::accumulate(own, own + kConfounders, 0.0);
    for (int i = 0; i < kConfounders; ++i) readout[i] += (own[i] /= sum) / kHeads;
  }
  for (int64_t j = 0; j < dim; ++j) out[j] = f[j] + dot(weights, b.data() + j * kColumns, kColumns);
}

double error_of(const Numbers& got, const Numbers& expected) {
  double square = 0;
  for (size_t i = 0; i < got.size(); ++i) square += (got[i] - expected[i]) * (got[i] - expected[i]);
  return std::sqrt(square / dot(expected.data(), expected.data(), expected.size()));
}

// Memory of the GPU.
struct Memory {
  explicit Memory(size_t bytes) { CHECK(cudaMalloc(&place, std::max(bytes, size_t{1})) == cudaSuccess); }
  ~Memory() { cudaFree(place); }
  Memory(const Memory&) = delete;
  template <typename T>
  std::vector<T> read(size_t count) const {
    std::vector<T> result(count);
    CHECK(cudaMemcpy(result.data(), place, count * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    return result;
  }
  void* place = nullptr;
};

// What TensorRT does with a plan, for two frames.
void check_run(IPluginV3OneBuild* build, IPluginV3OneRuntime* runtime, bool select) {
  const int64_t batch = 2;
  const Shapes in = inputs_of(select, batch), out = outputs_of(select, batch);
  const int64_t tokens = in[0][1], dim = in[0][2], count = out[0][1];
  const std::vector<DataType> types = types_of(select, DataType::kHALF);
  const auto given = described(in, types), made = described(out, {types.begin() + in.size(), types.end()});
  const auto number_in = static_cast<int32_t>(in.size()), number_out = static_cast<int32_t>(out.size());
  std::mt19937 generator(1);
  std::vector<Numbers> values;
  std::vector<std::unique_ptr<Memory>> memory;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  for (size_t i = 0; i < in.size(); ++i) {
    const double scale = i == 0 ? 2 : i + 3 == in.size() ? 2 / std::sqrt(double(dim)) : 1;
    values.push_back(draw(volume(in[i]), scale, generator));
    std::vector<__half> halves;
    for (double x : values[i]) halves.push_back(__float2half(static_cast<float>(x)));
    const size_t bytes = halves.size() * sizeof(__half);
    memory.push_back(std::make_unique<Memory>(bytes));
    inputs.push_back(memory.back()->place);
    CHECK(cudaMemcpy(memory.back()->place, halves.data(), bytes, cudaMemcpyHostToDevice) == cudaSuccess);
  }
  for (const auto& shape : out) {
    memory.push_back(std::make_unique<Memory>(volume(shape) * sizeof(int64_t)));
    outputs.push_back(memory.back()->place);
  }
  const Memory workspace(build->getWorkspaceSize(ranges(in, types).data(), number_in, nullptr, 0));
  CHECK(runtime->onShapeChange(given.data(), number_in, made.data(), number_out) == 0);
  CHECK(runtime->enqueue(given.data(), made.data(), inputs.data(), outputs.data(), workspace.place, nullptr) == 0);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);

  const auto rows = memory[in.size()]->read<__half>(volume(out[0]));
  const auto readout = memory.back()->read<float>(volume(out.back()));
  const auto indices = memory[in.size() + 1]->read<int64_t>(select ? volume(out[1]) : 0);
  const Numbers& a = values[in.size() - 3];
  Numbers got(rows.size()), shares(readout.begin(), readout.end()), scores;
  std::transform(rows.begin(), rows.end(), got.begin(), [](__half x) { return __half2float(x); });
  Numbers expected(got.size()), expected_shares(shares.size());
  for (int64_t frame = 0; frame < batch; ++frame) {
    const double* features = values[0].data() + frame * tokens * dim;
    std::vector<int64_t> order(tokens);
    std::iota(order.begin(), order.end(), 0);
    if (select) order = selected(features, values[1], tokens, dim, scores);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = frame * count + i, token = select ? indices[row] : i;
      CHECK(token == order[i] || std::abs(scores[token] - scores[order[i]]) < 1e-5);
      intervene(features + token * dim, a, values[in.size() - 2], values.back(), dim, &expected[row * dim],
                &expected_shares[row * kConfounders]);
    }
  }
  CHECK(error_of(got, expected) < 2e-3);
  CHECK(error_of(shares, expected_shares) < 2e-3);
}

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

void check(IPluginCreatorV3One* creator, bool select) {
  CHECK(!std::strcmp(creator->getPluginName(), select ? "select_intervene" : "intervene"));
  CHECK(creator->getFieldNames()->nbFields == (select ? 3 : 2));
  const int64_t heads = kHeads, count = kCount;  // as some parsers give them; what getFieldsToSerialize gives is otherwise
  const float eps = kEps;
  const PluginField fields[] = {{"heads", &heads, PluginFieldType::kINT64, 1},
                                {"eps", &eps, PluginFieldType::kFLOAT32, 1},
                                {"count", &count, PluginFieldType::kINT64, 1}};
  const PluginFieldCollection given{select ? 3 : 2, fields}, none{0, nullptr};
  CHECK(creator->createPlugin("", &none, TensorRTPhase::kBUILD) == nullptr);

  std::unique_ptr<IPluginV3> plugin(creator->createPlugin("", &given, TensorRTPhase::kBUILD));
  CHECK(plugin);
  auto* runtime = part<IPluginV3OneRuntime>(plugin.get(), PluginCapabilityType::kRUNTIME);
  const PluginFieldCollection* kept = runtime->getFieldsToSerialize();
  CHECK(kept->nbFields == given.nbFields);
  std::unique_ptr<IPluginV3> loaded(creator->createPlugin("", kept, TensorRTPhase::kRUNTIME));
  std::unique_ptr<IPluginV3> cloned(plugin->clone());
  auto* loadable = part<IPluginV3OneRuntime>(loaded.get(), PluginCapabilityType::kRUNTIME);
  std::unique_ptr<IPluginV3> attached(loadable->attachToContext(nullptr));
  for (IPluginV3* one : {plugin.get(), loaded.get(), cloned.get(), attached.get()}) {
    CHECK(one);
    auto* core = part<IPluginV3OneCore>(one, PluginCapabilityType::kCORE);
    CHECK(!std::strcmp(core->getPluginName(), creator->getPluginName()) && !std::strcmp(core->getPluginVersion(), "1"));
    auto* build = part<IPluginV3OneBuild>(one, PluginCapabilityType::kBUILD);
    auto* own = part<IPluginV3OneRuntime>(one, PluginCapabilityType::kRUNTIME);
    check_types(build, select);
    check_shapes(build, own, select);
    if (has_gpu()) check_run(build, own, select);
    const PluginField* fields_of_own = own->getFieldsToSerialize()->fields;
    CHECK(*static_cast<const int32_t*>(fields_of_own[0].data) == heads);
    CHECK(*static_cast<const float*>(fields_of_own[1].data) == eps);
  }
}

// The two creators, out of the library or out of TensorRT's registry after it loaded the library.
std::vector<IPluginCreatorInterface*> creators_of(void* library, const char* path, const char* runtime) {
  int32_t count = 0;
  auto* all = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"))(count);
  std::vector<IPluginCreatorInterface*> creators(all, all + count);
  CHECK(count == 2);
  if (!runtime) return creators;
  void* lean = dlopen(runtime, RTLD_NOW | RTLD_GLOBAL);
  if (!lean) std::printf("%s\n", dlerror());
  CHECK(lean);
  auto* registry = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(lean, "getPluginRegistry"))();
  CHECK(registry->loadLibrary(path));
  const char* names[] = {"select_intervene", "intervene"};
  for (int32_t i = 0; i < count; ++i) CHECK(registry->getCreator(names[i], "1", "") == creators[i]);
  return creators;
}

int main(int arguments, char** argument) {
  void* library = dlopen(argument[1], RTLD_NOW);
  if (!library) std::printf("%s\n", dlerror());
  CHECK(library);
  const auto creators = creators_of(library, argument[1], arguments > 2 ? argument[2] : nullptr);
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&complaints);
  for (IPluginCreatorInterface* creator : creators) {
    CHECK(!std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE"));
    check(static_cast<IPluginCreatorV3One*>(creator), creator == creators[0]);
  }
  return 0;
}
