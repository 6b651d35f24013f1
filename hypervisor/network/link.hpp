// A network as a network card sees it: something that takes Ethernet frames, and delivers some.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>

namespace strata::network {

/// Longest frame in either direction, in bytes: header, optional VLAN tag, 1500 bytes of payload.
inline constexpr std::size_t kMaxFrameBytes = 14 + 4 + 1500;
/// Shortest frame that is sent: a header. Cards pad what is shorter than 60 bytes.
inline constexpr std::size_t kMinFrameBytes = 14;

/// Where frames arrive: the card.
class Receiver {
 public:
  Receiver() = default;
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;
  virtual ~Receiver() = default;
  /// A frame without checksum (FCS), at most kMaxFrameBytes. On a thread of the link, one at a
  /// time, no lock of the link held. False: the card has no room now; the link keeps a bounded
  /// number of frames until Link::resume(), and drops what is beyond it, as a full switch would.
  virtual bool receive(std::span<const std::byte> frame) noexcept = 0;
};

/// Thread-safe once started.
class Link {
 public:
  Link() = default;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  /// Ends the link's threads; `receiver` is not called any more.
  virtual ~Link() = default;

  /// Makes the threads that the link needs; the process may make none later (docs/sandbox.md).
  /// Frames reach `receiver`, which must outlive the link, from then on. Once. Throws
  /// std::system_error if the host has no thread left.
  virtual void start(Receiver& receiver) = 0;
  /// Sends one frame, given in pieces, which may go when send() returns. Never blocks for long; a
  /// frame that is too short, too long, or finds no room is dropped and counted.
  virtual void send(std::span<const iovec> frame) noexcept = 0;
  /// The receiver has room again after it returned false.
  virtual void resume() noexcept = 0;
};

}  // namespace strata::network
