// Frames made by hand, and a receiver that keeps what arrives.
#pragma once

#include <arpa/inet.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

#include "network/link.hpp"

namespace strata::network::testing {

using Bytes = std::vector<std::byte>;

inline void put8(Bytes& out, unsigned value) { out.push_back(static_cast<std::byte>(value)); }
inline void put16(Bytes& out, unsigned value) {
  put8(out, value >> 8 & 0xFF);
  put8(out, value & 0xFF);
}
inline void put32(Bytes& out, std::uint32_t value) {
  put16(out, value >> 16);
  put16(out, value & 0xFFFF);
}
inline void put(Bytes& out, std::string_view text) {
  for (const char c : text) put8(out, static_cast<unsigned char>(c));
}
inline void put(Bytes& out, const Bytes& bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

inline unsigned get16(const Bytes& in, std::size_t at) {
  return std::to_integer<unsigned>(in.at(at)) << 8 | std::to_integer<unsigned>(in.at(at + 1));
}
inline std::uint32_t get32(const Bytes& in, std::size_t at) {
  return get16(in, at) << 16 | get16(in, at + 2);
}
inline unsigned get8(const Bytes& in, std::size_t at) {
  return std::to_integer<unsigned>(in.at(at));
}

/// RFC 1071 over [from, to) on top of `sum`.
inline unsigned checksum(const Bytes& in, std::size_t from, std::size_t to, std::uint32_t sum = 0) {
  for (std::size_t i = from; i < to; ++i) sum += get8(in, i) << ((i - from) % 2 == 0 ? 8 : 0);
  while (sum > 0xFFFF) sum = (sum & 0xFFFF) + (sum >> 16);
  return ~sum & 0xFFFF;
}
inline void set16(Bytes& out, std::size_t at, unsigned value) {
  out.at(at) = static_cast<std::byte>(value >> 8);
  out.at(at + 1) = static_cast<std::byte>(value);
}

constexpr std::uint32_t address(unsigned last) { return 10U << 24 | 2U << 8 | last; }
constexpr std::uint32_t kGuest = address(15), kHost = address(2), kDns = address(3);
constexpr std::string_view kMac{"\x52\x54\0\x12\x34\x56", 6};

inline Bytes ethernet(unsigned type) {
  Bytes out;
  put(out, std::string_view{"\x52\x55\x0a\0\x02\x02", 6});
  put(out, kMac);
  put16(out, type);
  return out;
}

inline Bytes arp_request(std::uint32_t who) {
  Bytes out = ethernet(0x0806);
  for (const unsigned value : {1U, 0x0800U, 0x0604U, 1U}) put16(out, value);
  put(out, kMac);
  put32(out, kGuest);
  put(out, std::string_view{"\0\0\0\0\0\0", 6});
  put32(out, who);
  return out;
}

/// An IPv4 packet around `payload`, whose TCP or UDP checksum it fills in.
inline Bytes ip(unsigned protocol, std::uint32_t from, std::uint32_t to, const Bytes& payload,
                unsigned fragment = 0, unsigned id = 1) {
  Bytes out = ethernet(0x0800);
  put16(out, 0x4500);
  put16(out, static_cast<unsigned>(20 + payload.size()));
  put16(out, id);
  put16(out, fragment);
  put16(out, 64U << 8 | protocol);
  put16(out, 0);
  put32(out, from);
  put32(out, to);
  set16(out, 24, checksum(out, 14, 34));
  put(out, payload);
  const std::size_t at = protocol == IPPROTO_TCP ? 34 + 16 : protocol == IPPROTO_UDP ? 34 + 6 : 0;
  if (at == 0 || out.size() < at + 2) return out;
  const std::uint32_t pseudo = (from >> 16) + (from & 0xFFFF) + (to >> 16) + (to & 0xFFFF) +
                               protocol + static_cast<std::uint32_t>(payload.size());
  set16(out, at, 0);
  set16(out, at, checksum(out, 34, out.size(), pseudo));
  return out;
}

inline Bytes udp(unsigned from, unsigned to, const Bytes& data) {
  Bytes out;
  put16(out, from);
  put16(out, to);
  put16(out, static_cast<unsigned>(8 + data.size()));
  put16(out, 0);
  put(out, data);
  return out;
}

enum TcpFlags : unsigned { kFin = 1, kSyn = 2, kRst = 4, kAck = 16 };
inline Bytes tcp(unsigned from, unsigned to, std::uint32_t sequence, std::uint32_t acknowledged,
                 unsigned flags, std::string_view data = {}) {
  Bytes out;
  put16(out, from);
  put16(out, to);
  put32(out, sequence);
  put32(out, acknowledged);
  put16(out, 5U << 12 | flags);
  put16(out, 0xFFFF);
  put32(out, 0);
  put(out, data);
  return out;
}

inline void send(Link& link, const Bytes& frame) {
  iovec whole{const_cast<std::byte*>(frame.data()), frame.size()};
  link.send({&whole, 1});
}

/// IPv4 checksums of a frame hold.
inline bool checksums_hold(const Bytes& frame) {
  const std::size_t end = 14 + get16(frame, 16);
  if (checksum(frame, 14, 34) != 0) return false;
  const unsigned protocol = get8(frame, 23);
  if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP) return true;
  const std::uint32_t pseudo = get16(frame, 26) + get16(frame, 28) + get16(frame, 30) +
                               get16(frame, 32) + protocol + static_cast<std::uint32_t>(end - 34);
  return checksum(frame, 34, end, pseudo) == 0;
}

class Inbox final : public Receiver {
 public:
  bool receive(std::span<const std::byte> frame) noexcept override {
    const std::lock_guard lock{mutex_};
    if (closed_) {
      ++refused_;
      changed_.notify_all();
      return false;
    }
    frames_.emplace_back(frame.begin(), frame.end());
    changed_.notify_all();
    return true;
  }
  /// Takes frames until one fits, which is returned. A minute at most.
  std::optional<Bytes> wait_for(const std::function<bool(const Bytes&)>& fits) {
    std::unique_lock lock{mutex_};
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes{1};
    for (;;) {
      while (!frames_.empty()) {
        Bytes frame = std::move(frames_.front());
        frames_.pop_front();
        if (fits(frame)) return frame;
      }
      if (changed_.wait_until(lock, end) == std::cv_status::timeout) return std::nullopt;
    }
  }
  void set_closed(bool closed) {
    const std::lock_guard lock{mutex_};
    closed_ = closed;
  }
  bool wait_for_refusal(std::chrono::milliseconds most = std::chrono::minutes{1}) {
    std::unique_lock lock{mutex_};
    return changed_.wait_for(lock, most, [this] { return refused_ != 0; });
  }
  std::size_t waiting() {
    const std::lock_guard lock{mutex_};
    return frames_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Bytes> frames_;
  bool closed_ = false;
  unsigned refused_ = 0;
};

}  // namespace strata::network::testing
