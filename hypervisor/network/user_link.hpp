// A user-mode network: libslirp between the guest and sockets of this process.
#pragma once

#include <memory>
#include <vector>

#include "mmu/expected.hpp"
#include "network/link.hpp"
#include "network/link_error.hpp"
#include "network/net_options.hpp"

namespace strata::network {

struct UserOptions {
  std::vector<Forward> forwards{};
  bool restricted = false;  ///< no way out, not even to the host; forwards still come in
};

/// 10.0.2.0/24: the host is 10.0.2.2, where its 127.0.0.1 answers, the name server 10.0.2.3, and
/// DHCP gives addresses from 10.0.2.15 on. IPv4 only. All that libslirp does is on one thread.
class UserLink final : public Link {
 public:
  /// Opens the ports of the host. Errors: one of them is not to be had.
  [[nodiscard]] static Expected<std::unique_ptr<UserLink>, LinkError> open(
      const UserOptions& options);
  ~UserLink() override;

  void start(Receiver& receiver) override;
  void send(std::span<const iovec> frame) noexcept override;
  void resume() noexcept override;

 private:
  class Loop;
  explicit UserLink(std::unique_ptr<Loop> loop);
  const std::unique_ptr<Loop> loop_;
};

}  // namespace strata::network
