// A step program of a package: the calls it takes, its registers, and what one step does.
#pragma once

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "json.h"
#include "safetensors.h"
#include "sizes.h"

namespace soda {

using safetensors::Tensors;
using CodeOf = std::map<std::string, std::unique_ptr<torch::inductor::AOTIModelPackageLoader>>;

// The tensor with the strides of a layout, at these sizes; itself where it has them.
inline at::Tensor laid_out(const at::Tensor& tensor, const json::Value& layout, const Dims& dims = {}) {
  std::vector<int64_t> stride = sizes_at(layout["stride"], dims);
  if (tensor.sizes() != at::IntArrayRef(sizes_at(layout["shape"], dims)) ||
      tensor.scalar_type() != safetensors::dtype(layout["dtype"].text))
    throw std::runtime_error("a tensor has another shape or dtype than the package was made for");
  if (tensor.strides() == at::IntArrayRef(stride)) return tensor;
  return at::empty_strided(tensor.sizes(), stride, tensor.options()).copy_(tensor);
}

class Program {
 public:
  // `layouts` are those of the weights; `own` are constants of the package.
  Program(json::Value form, const json::Value& layouts, const Tensors& weights, const Tensors& own)
      : form_(std::move(form)), registers_(form_["registers"].integer()) {
    size_t index = 0;
    for (const json::Value& input : form_["call"]["inputs"].items) {
      const std::string& name = input["name"].text;
      if (input["kind"].text == "argument") {
        arguments_[name] = index;
      } else {
        auto found = weights.find(name);
        if (found == weights.end()) throw std::runtime_error("the weights lack " + name);
        registers_[index] = laid_out(found->second, layouts[name]);
      }
      ++index;
    }
    for (const auto& [place, name] : form_["tensors"].fields)
      registers_.at(std::stoll(place)) = laid_out(own.at(name.text), form_["layouts"][place]);
  }

  size_t steps() const { return form_["steps"].items.size(); }

  // Arguments that it reads, with their registers.
  const std::map<std::string, size_t>& arguments() const { return arguments_; }

  const json::Value& calls() const { return form_["calls"]; }

  // The dimensions in these inputs; nothing where they are not inputs of this program.
  std::optional<Dims> dims_of(const Tensors& inputs) const {
    Dims dims;
    for (const auto& [name, dim] : form_["dims"].fields) {
      auto found = inputs.find(dim["argument"].text);
      if (found == inputs.end() || found->second.dim() <= dim["axis"].integer()) return std::nullopt;
      int64_t size = found->second.size(dim["axis"].integer()) - dim["shift"].integer(), scale = dim["scale"].integer();
      if (size % scale != 0 || size / scale < dim["low"].integer() || size / scale > dim["high"].integer())
        return std::nullopt;
      for (int64_t other : dim["without"].integers())
        if (size / scale == other) return std::nullopt;
      dims[name] = size / scale;
    }
    for (const auto& [name, index] : arguments_) {
      const json::Value& layout = form_["call"]["arguments"][name];
      auto found = inputs.find(name);
      if (found == inputs.end() || found->second.sizes() != at::IntArrayRef(sizes_at(layout["shape"], dims)))
        return std::nullopt;
    }
    return dims;
  }

  // Makes empty slots for these dimensions; code takes a size as that of an empty tensor.
  void begin(const Dims& dims) {
    dims_ = dims;
    for (const auto& [place, slot] : form_["slots"].fields)
      registers_.at(std::stoll(place)) = at::empty_strided(
          sizes_at(slot["shape"], dims), sizes_at(slot["stride"], dims), safetensors::dtype(slot["dtype"].text));
    for (const auto& [place, size] : form_["sizes"].fields)
      registers_.at(std::stoll(place)) = at::empty({size_at(size, dims), 0});
  }

  std::vector<at::Tensor> run(size_t step, const Tensors& inputs, const CodeOf& code) {
    for (const auto& [name, index] : arguments_) {
      auto found = inputs.find(name);
      if (found == inputs.end())
        throw std::runtime_error("the inputs lack " + name + " for step " + std::to_string(step));
      registers_[index] = laid_out(found->second, form_["call"]["arguments"][name], dims_);
    }
    for (int64_t number : form_["steps"].items.at(step).integers()) {
      const json::Value& call = form_["calls"].items[number];
      std::vector<at::Tensor> arguments;
      for (int64_t index : call["arguments"].integers()) arguments.push_back(registers_[index]);
      std::vector<at::Tensor> results = code.at(call["piece"].text)->boxed_run(std::move(arguments));
      std::vector<int64_t> places = call["results"].integers();
      for (size_t i = 0; i < results.size(); ++i) registers_[places.at(i)] = results[i];
      for (int64_t index : call["release"].integers()) registers_[index] = at::Tensor();
    }
    std::vector<at::Tensor> outputs;
    for (const json::Value& index : form_["outputs"].items)
      outputs.push_back(index.is_null() ? at::Tensor() : registers_[index.integer()]);
    return outputs;
  }

 private:
  json::Value form_;
  std::vector<at::Tensor> registers_;
  std::map<std::string, size_t> arguments_;
  Dims dims_;
};

}  // namespace soda
