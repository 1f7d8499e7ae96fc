// The fused operator as TensorRT plugins (IPluginV3), named as the nodes of the ONNX file: select_intervene, intervene.
//
// The library exports getCreators and setLoggerFinder and links no TensorRT: only its headers (10.3 to 11.1) are needed.
// TensorRT, or its ONNX parser, loads it with loadLibrary; plugins_to_serialize puts it into the plan.
#include <NvInfer.h>

#include <array>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "launcher.h"

namespace mcdrl_rt {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

nvinfer1::ILoggerFinder* logger_finder = nullptr;

void complain(const std::string& message) {
  nvinfer1::ILogger* logger = logger_finder ? logger_finder->findLogger() : nullptr;
  if (logger) logger->log(nvinfer1::ILogger::Severity::kERROR, ("mcdrl_rt: " + message).c_str());
}

// The node's attributes.
struct Settings {
  int32_t count = 0;  // N; intervene has none
  int32_t heads = 0;
  float eps = 1e-5f;
};

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(bool select, const Settings& settings) : select_(select), settings_(settings) {}
  Plugin(const Plugin& other) : Plugin(other.select_, other.settings_) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
      default: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    }
  }
  nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(*this); }

  const char* getPluginName() const noexcept override { return select_ ? "select_intervene" : "intervene"; }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return ""; }

  // Inputs: features, (texts,) a, c, b. Outputs: F (B, N, d), (indices (B, N),) readout (B, N, M).
  int32_t getNbOutputs() const noexcept override { return select_ ? 3 : 2; }

  int32_t getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs, int32_t) const noexcept override {
    outputs[0] = inputs[0];
    if (select_) outputs[1] = DataType::kINT64;
    outputs[select_ ? 2 : 1] = DataType::kFLOAT;
    return 0;
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t, const DimsExprs*, int32_t, DimsExprs* outputs, int32_t,
                          nvinfer1::IExprBuilder& expressions) noexcept override {
    const DimsExprs& features = inputs[0];
    outputs[0] = features;
    if (select_) {
      outputs[0].d[1] = expressions.constant(settings_.count);
      outputs[1].nbDims = 2;
      outputs[1].d[0] = features.d[0];
      outputs[1].d[1] = outputs[0].d[1];
    }
    DimsExprs& readout = outputs[select_ ? 2 : 1];
    readout.nbDims = 3;
    readout.d[0] = features.d[0];
    readout.d[1] = outputs[0].d[1];
    readout.d[2] = expressions.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *inputs[a()].d[0],
                                         *expressions.constant(settings_.heads));
    return 0;
  }

  bool supportsFormatCombination(int32_t place, const DynamicPluginTensorDesc* all, int32_t inputs,
                                 int32_t outputs) noexcept override {
    const PluginTensorDesc& own = all[place].desc;
    if (own.format != nvinfer1::TensorFormat::kLINEAR) return false;
    if (place == 0) return own.type == DataType::kHALF || own.type == DataType::kBF16;
    if (place <= inputs) return own.type == all[0].desc.type;
    return own.type == (place == inputs + outputs - 1 ? DataType::kFLOAT : DataType::kINT64);
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                          int32_t) noexcept override {
    return 0;
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                          int32_t) const noexcept override {
    const nvinfer1::Dims* dims[] = {&inputs[0].max, &inputs[1].max, &inputs[a()].max};
    return workspace_bytes(shape(*dims[0], *dims[1], *dims[2]));
  }

  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t, const PluginTensorDesc*, int32_t) noexcept override {
    const char* reason = unsupported(shape(inputs[0].dims, inputs[1].dims, inputs[a()].dims));
    if (reason) complain(std::string(getPluginName()) + " does not take this shape: " + reason);
    return reason ? 1 : 0;
  }

  int32_t enqueue(const PluginTensorDesc* described, const PluginTensorDesc*, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    const Shape own = shape(described[0].dims, described[1].dims, described[a()].dims);
    const Scalar type = described[0].type == DataType::kHALF ? Scalar::kHalf : Scalar::kBFloat16;
    const Buffers buffers = {inputs[0],
                             select_ ? inputs[1] : nullptr,
                             inputs[a()],
                             inputs[a() + 1],
                             inputs[a() + 2],
                             nullptr,
                             outputs[0],
                             nullptr,
                             select_ ? static_cast<int64_t*>(outputs[1]) : nullptr,
                             static_cast<float*>(outputs[select_ ? 2 : 1]),
                             workspace};
    const cudaError_t error = select_ ? select_intervene(own, type, buffers, stream) : intervene(own, type, buffers, stream);
    if (error != cudaSuccess) complain(std::string(getPluginName()) + ": " + cudaGetErrorString(error));
    return error == cudaSuccess ? 0 : 1;
  }

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override {
    fields_ = {PluginField("heads", &settings_.heads, PluginFieldType::kINT32, 1),
               PluginField("eps", &settings_.eps, PluginFieldType::kFLOAT32, 1),
               PluginField("count", &settings_.count, PluginFieldType::kINT32, 1)};
    collection_ = {select_ ? 3 : 2, fields_.data()};
    return &collection_;
  }

 private:
  int a() const { return select_ ? 2 : 1; }  // place of a among the inputs; c and b follow

  Shape shape(const nvinfer1::Dims& features, const nvinfer1::Dims& texts, const nvinfer1::Dims& a) const {
    const auto size = [](int64_t value) { return static_cast<int>(value); };
    const int heads = settings_.heads > 0 ? settings_.heads : 1;
    return {size(features.d[0]), size(features.d[1]),           select_ ? settings_.count : size(features.d[1]),
            size(features.d[2]), select_ ? size(texts.d[0]) : 0, settings_.heads,
            size(a.d[0]) / heads, settings_.eps, 0};
  }

  const bool select_;
  Settings settings_;
  std::array<PluginField, 3> fields_{};
  PluginFieldCollection collection_{};
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(bool select) : select_(select) {
    fields_ = {PluginField("heads", nullptr, PluginFieldType::kINT32, 1),
               PluginField("eps", nullptr, PluginFieldType::kFLOAT32, 1),
               PluginField("count", nullptr, PluginFieldType::kINT32, 1)};
    collection_ = {select_ ? 3 : 2, fields_.data()};  // parsers warn of a field that a node lacks
  }

  const char* getPluginName() const noexcept override { return select_ ? "select_intervene" : "intervene"; }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return ""; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  nvinfer1::IPluginV3* createPlugin(const char*, const PluginFieldCollection* given,
                                    nvinfer1::TensorRTPhase) noexcept override {
    Settings settings;
    for (int32_t i = 0; given && i < given->nbFields; ++i) {
      const PluginField& field = given->fields[i];
      if (!field.name || !field.data) continue;
      if (!std::strcmp(field.name, "count")) settings.count = whole(field);
      if (!std::strcmp(field.name, "heads")) settings.heads = whole(field);
      if (!std::strcmp(field.name, "eps")) settings.eps = *static_cast<const float*>(field.data);
    }
    if (settings.heads < 1 || (select_ && settings.count < 1)) {
      complain(std::string(getPluginName()) + " needs its attributes heads and count");
      return nullptr;
    }
    return new (std::nothrow) Plugin(select_, settings);
  }

 private:
  // Parsers give an ONNX attribute in 64 or in 32 bits.
  static int32_t whole(const PluginField& field) {
    return field.type == PluginFieldType::kINT64 ? static_cast<int32_t>(*static_cast<const int64_t*>(field.data))
                                                 : *static_cast<const int32_t*>(field.data);
  }

  const bool select_;
  std::array<PluginField, 3> fields_{};
  PluginFieldCollection collection_{};
};

}  // namespace
}  // namespace mcdrl_rt

#define MCDRL_EXPORT extern "C" __attribute__((visibility("default")))

MCDRL_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { mcdrl_rt::logger_finder = finder; }

MCDRL_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static mcdrl_rt::Creator select(true), intervene(false);
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&select, &intervene};
  count = 2;
  return creators;
}
