// Runs one trajectory of a package on given inputs:
//
//   soda_run dit.soda.pt2 inputs.safetensors outputs.safetensors [weights.safetensors]
//
// Inputs are named "<step>/<argument>", or "<argument>" where one value serves every step. Outputs are named
// "<step>/<number>". A sampler would make the inputs of a step from the outputs of the one before.

#include <ATen/core/grad_mode.h>

#include <chrono>
#include <iostream>

#include "package.h"

namespace {

safetensors::Tensors inputs_of(const soda::Package& package, const safetensors::Tensors& given, size_t step) {
  safetensors::Tensors inputs;
  for (const std::string& name : package.arguments()) {
    auto found = given.find(std::to_string(step) + "/" + name);
    if (found == given.end()) found = given.find(name);
    if (found != given.end()) inputs[name] = found->second;
  }
  return inputs;
}

void run(int count, char** paths) {
  at::NoGradGuard inference;
  auto start = std::chrono::steady_clock::now();
  auto seconds = [&start] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  soda::Package package(paths[1], count > 4 ? safetensors::read(paths[4]) : safetensors::Tensors{});
  safetensors::Tensors given = safetensors::read(paths[2]), outputs;
  std::cout << "loaded in " << seconds() << " s\n";
  start = std::chrono::steady_clock::now();
  for (size_t step = 0; step < package.steps(); ++step) {
    std::vector<at::Tensor> results = package.run(step, inputs_of(package, given, step));
    for (size_t number = 0; number < results.size(); ++number)
      if (results[number].defined())
        outputs[std::to_string(step) + "/" + std::to_string(number)] = results[number].clone();
  }
  std::cout << package.steps() << " steps in " << seconds() << " s\n";
  safetensors::write(paths[3], outputs);
}

}  // namespace

int main(int count, char** paths) {
  if (count < 4 || count > 5) {
    std::cerr << "usage: soda_run PACKAGE INPUTS OUTPUTS [WEIGHTS]\n";
    return 2;
  }
  try {
    run(count, paths);
  } catch (const std::exception& error) {
    std::cerr << "soda_run: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
