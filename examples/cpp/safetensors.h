// Tensors in the safetensors format: eight bytes with the length of a JSON header, the header, then the data.
#pragma once

#include <ATen/ATen.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "json.h"

namespace safetensors {

using Tensors = std::map<std::string, at::Tensor>;

struct DtypeName {
  at::ScalarType type;
  const char* stored;  // in safetensors
  const char* named;   // in the package's JSON files
};

inline const std::vector<DtypeName>& dtypes() {
  static const std::vector<DtypeName> names = {
      {at::kDouble, "F64", "float64"}, {at::kFloat, "F32", "float32"}, {at::kHalf, "F16", "float16"},
      {at::kBFloat16, "BF16", "bfloat16"}, {at::kComplexFloat, "C64", "complex64"}, {at::kLong, "I64", "int64"},
      {at::kInt, "I32", "int32"}, {at::kShort, "I16", "int16"}, {at::kChar, "I8", "int8"},
      {at::kFloat8_e4m3fn, "F8_E4M3", "float8_e4m3fn"},
      {at::kByte, "U8", "uint8"}, {at::kBool, "BOOL", "bool"},
  };
  return names;
}

inline at::ScalarType dtype(const std::string& name) {
  for (const DtypeName& known : dtypes())
    if (name == known.stored || name == known.named) return known.type;
  throw std::runtime_error("unknown dtype " + name);
}

inline Tensors parse(const char* data, size_t size) {
  uint64_t length = 0;
  std::memcpy(&length, data, sizeof(length));
  if (size < sizeof(length) || length > size - sizeof(length)) throw std::runtime_error("truncated safetensors");
  json::Value header = json::parse({data + sizeof(length), length});
  const char* body = data + sizeof(length) + length;
  Tensors tensors;
  for (const auto& [name, entry] : header.fields) {
    if (name == "__metadata__") continue;
    std::vector<int64_t> shape = entry["shape"].integers(), offsets = entry["data_offsets"].integers();
    at::Tensor tensor = at::empty(shape, dtype(entry["dtype"].text));
    if (sizeof(length) + length + offsets[1] > size || offsets[1] - offsets[0] != int64_t(tensor.nbytes()))
      throw std::runtime_error("damaged safetensors: " + name);
    std::memcpy(tensor.data_ptr(), body + offsets[0], tensor.nbytes());
    tensors[name] = tensor;
  }
  return tensors;
}

inline Tensors read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::string data{std::istreambuf_iterator<char>(file), {}};
  return parse(data.data(), data.size());
}

inline void write(const std::string& path, const Tensors& tensors) {
  std::string header = "{", body;
  for (const auto& [name, value] : tensors) {
    at::Tensor tensor = value.contiguous();
    std::string type, shape;
    for (const DtypeName& known : dtypes())
      if (known.type == tensor.scalar_type()) type = known.stored;
    for (int64_t length : tensor.sizes()) shape += (shape.empty() ? "" : ",") + std::to_string(length);
    size_t start = body.size();
    body.append(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
    header += (header.size() > 1 ? ",\"" : "\"") + name + "\":{\"dtype\":\"" + type + "\",\"shape\":[" + shape +
        "],\"data_offsets\":[" + std::to_string(start) + "," + std::to_string(body.size()) + "]}";
  }
  header += "}";
  uint64_t length = header.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << header << body;
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

}  // namespace safetensors
