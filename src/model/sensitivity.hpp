#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "model/blocks.hpp"
#include "model/folding.hpp"

namespace flute::model {

/// What a change to each of a model's groups of layers alone does to what the model says: the mean over all tokens of
/// KL(p || q), p being the next token's distribution that the model gives, q that of the model in which one group's
/// layers are those of `changed(group)`; in nats, in the order of `groups`, each of which is one of layer_groups() or
/// head_group(), in the model's order. `ids` are windows of `length` tokens. One block is in memory at a time, and the
/// activations of all changes behind it: groups x ids x hidden size x 4 bytes. `progress` is called with the share of
/// the work that has been done since the last call.
std::vector<double> measure_divergence(const Blocks& blocks, std::span<const int32_t> ids, int64_t length,
                                       std::span<const LayerGroup> groups,
                                       const std::function<PackedLayers(const LayerGroup&)>& changed,
                                       const std::function<void(double share)>& progress = {});

}  // namespace flute::model
