// A package of soda_compile.export: its code, weights and step programs, and the trajectory that they run.
#pragma once

#include <caffe2/serialize/inline_container.h>

#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "program.h"

namespace soda {

inline const char* kFormat = "soda-package/3";

class Package {
 public:
  // `weights` are needed only for a package that has none inside.
  explicit Package(const std::string& path, Tensors weights = {}) : reader_(path) {
    json::Value manifest = json("extra/manifest.json");
    if (manifest["format"].text != kFormat)
      throw std::runtime_error("package format " + manifest["format"].text + ", this example reads " + kFormat);
    if (manifest["environment"]["device"].text != "cpu") throw std::runtime_error("this example runs on the CPU");
    Tensors own = tensors("extra/tensors.safetensors");
    if (manifest["weights_inside"].truth) weights = tensors("extra/weights.safetensors");
    weights.insert(own.begin(), own.end());
    for (int64_t number = 0; number < manifest["programs"].integer(); ++number) {
      json::Value form = json("extra/programs/" + std::to_string(number) + ".json");
      programs_.emplace_back(std::move(form), manifest["weights"], weights, own);
      for (const auto& [name, index] : programs_.back().arguments()) arguments_.insert(name);
      for (const json::Value& call : programs_.back().calls().items) {
        auto& code = code_[call["piece"].text];
        if (!code) code = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path, call["piece"].text);
      }
    }
  }

  size_t steps() const { return programs_.front().steps(); }

  // What the programs read.
  const std::set<std::string>& arguments() const { return arguments_; }

  // Runs one step of a trajectory; steps must come in order, from 0, whose inputs tell the sizes of all.
  std::vector<at::Tensor> run(size_t step, const Tensors& inputs) {
    if (step == 0) begin(inputs);
    return running_->run(step, inputs, code_);
  }

 private:
  void begin(const Tensors& inputs) {
    for (Program& program : programs_)
      if (std::optional<Dims> dims = program.dims_of(inputs)) {
        running_ = &program;
        return program.begin(*dims);
      }
    for (const auto& [name, index] : programs_.front().arguments())
      if (!inputs.contains(name)) throw std::runtime_error("the inputs lack " + name + " for step 0");
    std::ostringstream sizes;
    for (const auto& [name, tensor] : inputs) sizes << " " << name << " " << tensor.sizes();
    throw std::runtime_error("the package has no program for inputs of these sizes:" + sizes.str());
  }

  json::Value json(const std::string& name) {
    auto [data, size] = reader_.getRecord(name);
    return json::parse({static_cast<const char*>(data.get()), size});
  }

  Tensors tensors(const std::string& name) {
    auto [data, size] = reader_.getRecord(name);
    return safetensors::parse(static_cast<const char*>(data.get()), size);
  }

  caffe2::serialize::PyTorchStreamReader reader_;
  std::vector<Program> programs_;
  CodeOf code_;
  std::set<std::string> arguments_;
  Program* running_ = nullptr;
};

}  // namespace soda
