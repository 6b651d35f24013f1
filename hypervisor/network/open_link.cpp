#include "network/open_link.hpp"

#include "network/tap_link.hpp"
#include "network/user_link.hpp"

namespace strata::network {

Expected<std::unique_ptr<Link>, LinkError> open_link(const NetOptions& options) {
  if (options.tap.empty()) {
    auto link = UserLink::open({.forwards = options.forwards, .restricted = options.restricted});
    if (!link) return Unexpected{link.error()};
    return std::unique_ptr<Link>{std::move(*link)};
  }
  auto link = TapLink::open(options.tap);
  if (!link) return Unexpected{link.error()};
  return std::unique_ptr<Link>{std::move(*link)};
}

}  // namespace strata::network
