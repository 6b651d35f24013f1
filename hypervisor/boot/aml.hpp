// A writer for the few AML constructs our DSDT needs (ACPI 6.4, chapter 20). Internal to this
// folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

namespace strata::boot::aml {

using Bytes = std::vector<std::byte>;

/// The terms one after the other.
[[nodiscard]] Bytes join(std::initializer_list<Bytes> parts);

/// An integer in its shortest form.
[[nodiscard]] Bytes integer(std::uint64_t value);
/// EISAID("PNP0501") as an integer; `id` has three capitals and four hexadecimal digits.
[[nodiscard]] Bytes eisa_id(std::string_view id);
/// Name(path, value). A path is one segment of up to four characters, "\" before it for the root.
[[nodiscard]] Bytes name(std::string_view path, const Bytes& value);
[[nodiscard]] Bytes scope(std::string_view path, const Bytes& body);
[[nodiscard]] Bytes device(std::string_view path, const Bytes& body);
/// At most 255 elements.
[[nodiscard]] Bytes package(std::span<const Bytes> elements);

/// Resource descriptors (ACPI 6.4, 6.4).
[[nodiscard]] Bytes io_ports(std::uint16_t first, std::uint8_t count);
[[nodiscard]] Bytes irq(unsigned number);
[[nodiscard]] Bytes bus_numbers(std::uint16_t first, std::uint16_t last);
[[nodiscard]] Bytes port_window(std::uint16_t first, std::uint16_t last);
[[nodiscard]] Bytes memory_window(std::uint32_t first, std::uint32_t last);
/// A buffer of descriptors with the end tag.
[[nodiscard]] Bytes resources(std::initializer_list<Bytes> descriptors);

}  // namespace strata::boot::aml
