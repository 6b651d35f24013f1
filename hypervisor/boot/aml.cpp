#include "boot/aml.hpp"

#include "boot/bytes.hpp"

namespace strata::boot::aml {
namespace {

constexpr std::uint8_t kNameOp = 0x08, kBytePrefix = 0x0A, kWordPrefix = 0x0B, kDWordPrefix = 0x0C,
                       kQWordPrefix = 0x0E, kScopeOp = 0x10, kBufferOp = 0x11, kPackageOp = 0x12,
                       kExtOpPrefix = 0x5B, kDeviceOp = 0x82;

void add(Bytes& out, const Bytes& more) { out.insert(out.end(), more.begin(), more.end()); }

/// A name segment, padded with underscores (20.2.2).
Bytes path_bytes(std::string_view path) {
  Bytes out;
  if (path.starts_with('\\')) {
    out.push_back(std::byte{'\\'});
    path.remove_prefix(1);
  }
  for (std::size_t i = 0; i < 4; ++i) {
    out.push_back(static_cast<std::byte>(i < path.size() ? path[i] : '_'));
  }
  return out;
}

/// PkgLength (20.2.4), which counts its own bytes, and then `body`.
Bytes with_length(const Bytes& body) {
  Bytes out;
  const auto emit = [&out](std::size_t value) { out.push_back(static_cast<std::byte>(value)); };
  if (body.size() + 1 < 0x40) {
    emit(body.size() + 1);
  } else {
    std::size_t follow = 1;
    while (body.size() + 1 + follow >= std::size_t{1} << (4 + 8 * follow)) ++follow;
    const std::size_t total = body.size() + 1 + follow;
    emit(follow << 6 | (total & 0xF));
    for (std::size_t i = 0; i < follow; ++i) emit(total >> (4 + 8 * i) & 0xFF);
  }
  add(out, body);
  return out;
}

Bytes op(std::initializer_list<std::uint8_t> codes, const Bytes& rest) {
  Bytes out;
  for (const std::uint8_t code : codes) out.push_back(std::byte{code});
  add(out, rest);
  return out;
}

/// An address-space descriptor (6.4.3.5) of 16- or 32-bit fields with fixed ends.
template <class Field>
Bytes address_space(std::uint8_t tag, std::uint8_t type, std::uint8_t specific, Field first,
                    Field last) {
  constexpr std::uint8_t kMinAndMaxFixed = 0x0C;
  Bytes out;
  append(out, tag);
  append(out, static_cast<std::uint16_t>(3 + 5 * sizeof(Field)));
  append(out, type);
  append(out, kMinAndMaxFixed);
  append(out, specific);
  append(out, Field{0});  // granularity
  append(out, first);
  append(out, last);
  append(out, Field{0});  // translation
  append(out, static_cast<Field>(last - first + 1));
  return out;
}

}  // namespace

Bytes join(std::initializer_list<Bytes> parts) {
  Bytes out;
  for (const Bytes& part : parts) add(out, part);
  return out;
}

Bytes integer(std::uint64_t value) {
  Bytes out;
  if (value <= 1) {
    append(out, static_cast<std::uint8_t>(value));  // ZeroOp, OneOp
  } else if (value <= 0xFF) {
    append(out, kBytePrefix);
    append(out, static_cast<std::uint8_t>(value));
  } else if (value <= 0xFFFF) {
    append(out, kWordPrefix);
    append(out, static_cast<std::uint16_t>(value));
  } else if (value <= 0xFFFFFFFF) {
    append(out, kDWordPrefix);
    append(out, static_cast<std::uint32_t>(value));
  } else {
    append(out, kQWordPrefix);
    append(out, value);
  }
  return out;
}

Bytes eisa_id(std::string_view id) {
  // Three 5-bit letters, then four hexadecimal digits, stored big-endian (19.3.4).
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    value = value << 5 | static_cast<std::uint32_t>(id[i] - '@');
  }
  for (std::size_t i = 3; i < 7; ++i) {
    const char c = id[i];
    value = value << 4 | static_cast<std::uint32_t>(c <= '9' ? c - '0' : c - 'A' + 10);
  }
  Bytes out;
  append(out, kDWordPrefix);
  append(out, __builtin_bswap32(value));
  return out;
}

Bytes name(std::string_view path, const Bytes& value) {
  return op({kNameOp}, join({path_bytes(path), value}));
}

Bytes scope(std::string_view path, const Bytes& body) {
  return op({kScopeOp}, with_length(join({path_bytes(path), body})));
}

Bytes device(std::string_view path, const Bytes& body) {
  return op({kExtOpPrefix, kDeviceOp}, with_length(join({path_bytes(path), body})));
}

Bytes package(std::span<const Bytes> elements) {
  Bytes body;
  append(body, static_cast<std::uint8_t>(elements.size()));
  for (const Bytes& element : elements) add(body, element);
  return op({kPackageOp}, with_length(body));
}

Bytes io_ports(std::uint16_t first, std::uint8_t count) {
  constexpr std::uint8_t kTag = 0x47, kDecode16 = 1;
  Bytes out;
  append(out, kTag);
  append(out, kDecode16);
  append(out, first);
  append(out, first);
  append(out, std::uint8_t{1});  // alignment
  append(out, count);
  return out;
}

Bytes irq(unsigned number) {
  constexpr std::uint8_t kTag = 0x22;  // no flags: edge-triggered, active high
  Bytes out;
  append(out, kTag);
  append(out, static_cast<std::uint16_t>(1U << number));
  return out;
}

Bytes bus_numbers(std::uint16_t first, std::uint16_t last) {
  return address_space<std::uint16_t>(0x88, 2, 0, first, last);
}

Bytes port_window(std::uint16_t first, std::uint16_t last) {
  constexpr std::uint8_t kEntireRange = 3;
  return address_space<std::uint16_t>(0x88, 1, kEntireRange, first, last);
}

Bytes memory_window(std::uint32_t first, std::uint32_t last) {
  constexpr std::uint8_t kReadWrite = 1;
  return address_space<std::uint32_t>(0x87, 0, kReadWrite, first, last);
}

Bytes resources(std::initializer_list<Bytes> descriptors) {
  Bytes list = join(descriptors);
  // The end tag; a checksum of zero means that there is none (6.4.2.9).
  append(list, std::uint16_t{0x0079});
  return op({kBufferOp}, with_length(join({integer(list.size()), list})));
}

}  // namespace strata::boot::aml
