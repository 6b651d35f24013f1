// Networks of a VM.
#pragma once

#include <memory>

#include "mmu/expected.hpp"
#include "network/link.hpp"
#include "network/link_error.hpp"
#include "network/net_options.hpp"

namespace strata::network {

/// Opens what `options` name: with the rights of the user, before the sandbox. The error is one
/// line without a full stop.
[[nodiscard]] Expected<std::unique_ptr<Link>, LinkError> open_link(const NetOptions& options);

}  // namespace strata::network
