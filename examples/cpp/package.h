// A package of soda_compile.export: its code, weights and step program, and the trajectory that they run.
#pragma once

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <memory>
#include <string>
#include <vector>

#include "json.h"
#include "safetensors.h"

namespace soda {

using safetensors::Tensors;
using Code = torch::inductor::AOTIModelPackageLoader;

inline const char* kFormat = "soda-package/2";

inline at::Tensor laid_out(const at::Tensor& tensor, const json::Value& layout) {
  std::vector<int64_t> stride = layout["stride"].integers();
  if (tensor.sizes() != at::IntArrayRef(layout["shape"].integers()) ||
      tensor.scalar_type() != safetensors::dtype(layout["dtype"].text))
    throw std::runtime_error("a tensor has another shape or dtype than the package was made for");
  if (tensor.strides() == at::IntArrayRef(stride)) return tensor;
  return at::empty_strided(tensor.sizes(), stride, tensor.options()).copy_(tensor);
}

class Package {
 public:
  // `weights` are needed only for a package that has none inside.
  explicit Package(const std::string& path, Tensors weights = {}) : reader_(path) {
    json::Value manifest = json("extra/manifest.json");
    if (manifest["format"].text != kFormat)
      throw std::runtime_error("package format " + manifest["format"].text + ", this example reads " + kFormat);
    if (manifest["environment"]["device"].text != "cpu") throw std::runtime_error("this example runs on the CPU");
    program_ = json("extra/programs/0.json");
    if (!program_["dims"].fields.empty())
      throw std::runtime_error("its first program is for many sizes; this example runs programs for fixed sizes");
    Tensors own = tensors("extra/tensors.safetensors");
    if (manifest["weights_inside"].truth) weights = tensors("extra/weights.safetensors");
    weights.insert(own.begin(), own.end());
    registers_.resize(program_["registers"].integer());
    bind(manifest["weights"], weights, own);
    for (const json::Value& call : program_["calls"].items) {
      std::unique_ptr<Code>& code = code_[call["piece"].text];
      if (!code) code = std::make_unique<Code>(path, call["piece"].text);
    }
  }

  size_t steps() const { return program_["steps"].items.size(); }

  const std::vector<std::string>& arguments() const { return arguments_; }

  // Runs one step of a trajectory; steps must come in order, from 0. `inputs` has a tensor for each argument.
  std::vector<at::Tensor> run(size_t step, const Tensors& inputs) {
    const json::Value& call_form = program_["call"];
    for (const auto& [name, index] : argument_registers_)
      registers_[index] = laid_out(inputs.at(name), call_form["arguments"][name]);
    for (int64_t number : program_["steps"].items.at(step).integers()) {
      const json::Value& call = program_["calls"].items[number];
      std::vector<at::Tensor> arguments;
      for (int64_t index : call["arguments"].integers()) arguments.push_back(registers_[index]);
      std::vector<at::Tensor> results = code_.at(call["piece"].text)->boxed_run(std::move(arguments));
      std::vector<int64_t> places = call["results"].integers();
      for (size_t i = 0; i < results.size(); ++i) registers_[places.at(i)] = results[i];
      for (int64_t index : call["release"].integers()) registers_[index] = at::Tensor();
    }
    std::vector<at::Tensor> outputs;
    for (const json::Value& index : program_["outputs"].items)
      outputs.push_back(index.is_null() ? at::Tensor() : registers_[index.integer()]);
    return outputs;
  }

 private:
  // Puts weights, constants and empty slots into their registers; they stay there.
  void bind(const json::Value& layouts, const Tensors& weights, const Tensors& own) {
    size_t index = 0;
    for (const json::Value& input : program_["call"]["inputs"].items) {
      const std::string& name = input["name"].text;
      if (input["kind"].text == "argument") {
        arguments_.push_back(name);
        argument_registers_[name] = index;
      } else {
        auto found = weights.find(name);
        if (found == weights.end()) throw std::runtime_error("the weights lack " + name);
        registers_[index] = laid_out(found->second, layouts[name]);
      }
      ++index;
    }
    for (const auto& [place, name] : program_["tensors"].fields)
      registers_.at(std::stoll(place)) = laid_out(own.at(name.text), program_["layouts"][place]);
    for (const auto& [place, slot] : program_["slots"].fields)
      registers_.at(std::stoll(place)) = at::empty_strided(
          slot["shape"].integers(), slot["stride"].integers(), safetensors::dtype(slot["dtype"].text));
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
  json::Value program_;
  std::map<std::string, std::unique_ptr<Code>> code_;
  std::vector<at::Tensor> registers_;
  std::vector<std::string> arguments_;
  std::map<std::string, size_t> argument_registers_;
};

}  // namespace soda
