#include "boot/acpi.hpp"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "boot/bytes.hpp"
#include "boot/dsdt.hpp"
#include "boot/machine_layout.hpp"

namespace strata::boot {
namespace {

using Table = std::vector<std::byte>;

constexpr std::size_t kHeaderBytes = 36;
constexpr std::size_t kAlignment = 64;  // FACS demands it; harmless for the others

void put_text(std::span<std::byte> out, std::size_t at, std::string_view text) {
  std::memcpy(out.subspan(at, text.size()).data(), text.data(), text.size());
}

/// Makes the bytes of `range` sum to zero by means of the one at `at`.
void fix_checksum(std::span<std::byte> range, std::size_t at) {
  range[at] = std::byte{0};
  const unsigned sum = std::accumulate(range.begin(), range.end(), 0U, [](unsigned s, std::byte b) {
    return s + std::to_integer<unsigned>(b);
  });
  range[at] = static_cast<std::byte>(0U - sum);
}

/// The header every table starts with (ACPI 6.4, 5.2.6).
Table begin_table(std::string_view signature, std::uint8_t revision) {
  Table table(kHeaderBytes);
  const std::span<std::byte> out{table};
  put_text(out, 0, signature);
  put(out, 8, revision);
  put_text(out, 10, "STRATA");
  put_text(out, 16, "STRATAVM");
  put(out, 24, 1U);  // OEM revision
  put_text(out, 28, "STRT");
  put(out, 32, 1U);  // creator revision
  return table;
}

Table end_table(Table table) {
  put(std::span{table}, 4, static_cast<std::uint32_t>(table.size()));
  fix_checksum(table, 9);
  return table;
}

/// Offsets in the FADT (5.2.9).
namespace fadt {
constexpr std::size_t kFacs = 36, kDsdt = 40, kProfile = 45, kSciIrq = 46, kPm1aEvent = 56,
                      kPm1aControl = 64, kPmTimer = 76, kGpe0 = 80, kPm1EventBytes = 88,
                      kPm1ControlBytes = 89, kPmTimerBytes = 91, kGpe0Bytes = 92, kC2Latency = 96,
                      kC3Latency = 98, kBootArch = 109, kFlags = 112, kResetRegister = 116,
                      kResetValue = 128, kMinor = 131, kXDsdt = 140, kXPm1aEvent = 148,
                      kXPm1aControl = 172, kXPmTimer = 208, kXGpe0 = 220, kBytes = 276;
constexpr std::uint16_t kLegacyDevices = 1U << 0, kNoVga = 1U << 2, kNoAspm = 1U << 4;
constexpr std::uint32_t kWbinvd = 1U << 0, kC1 = 1U << 2, kNoSleepButton = 1U << 5,
                        kNoFixedRtcWake = 1U << 6, kResetSupported = 1U << 10, kHeadless = 1U << 12;
}  // namespace fadt

/// A generic address of a port (5.2.3.2).
void put_port(std::span<std::byte> out, std::size_t at, std::uint16_t port, unsigned bytes,
              unsigned access) {
  constexpr std::uint8_t kSystemIo = 1;
  put(out, at, kSystemIo);
  put(out, at + 1, static_cast<std::uint8_t>(bytes * 8));
  put(out, at + 3, static_cast<std::uint8_t>(access));  // 1 byte, 2 word, 3 dword
  put(out, at + 4, std::uint64_t{port});
}

void put_fixed_hardware(std::span<std::byte> out) {
  using namespace layout;
  put(out, fadt::kSciIrq, static_cast<std::uint16_t>(kSciIrq));
  put(out, fadt::kPm1aEvent, std::uint32_t{kPm1aEventPort});
  put(out, fadt::kPm1aControl, std::uint32_t{kPm1aControlPort});
  put(out, fadt::kPmTimer, std::uint32_t{kPmTimerPort});
  put(out, fadt::kGpe0, std::uint32_t{kGpe0Port});
  put(out, fadt::kPm1EventBytes, static_cast<std::uint8_t>(kPm1EventBytes));
  put(out, fadt::kPm1ControlBytes, static_cast<std::uint8_t>(kPm1ControlBytes));
  put(out, fadt::kPmTimerBytes, static_cast<std::uint8_t>(kPmTimerBytes));
  put(out, fadt::kGpe0Bytes, static_cast<std::uint8_t>(kGpe0Bytes));
  put_port(out, fadt::kXPm1aEvent, kPm1aEventPort, kPm1EventBytes, 2);
  put_port(out, fadt::kXPm1aControl, kPm1aControlPort, kPm1ControlBytes, 2);
  put_port(out, fadt::kXPmTimer, kPmTimerPort, kPmTimerBytes, 3);
  put_port(out, fadt::kXGpe0, kGpe0Port, kGpe0Bytes, 1);
  put_port(out, fadt::kResetRegister, kResetPort, 1, 1);
  put(out, fadt::kResetValue, kResetValue);
}

Table build_fadt(PA facs, PA dsdt) {
  Table table = begin_table("FACP", 6);
  table.resize(fadt::kBytes);
  const std::span<std::byte> out{table};
  put(out, fadt::kFacs, static_cast<std::uint32_t>(facs.value()));
  put(out, fadt::kDsdt, static_cast<std::uint32_t>(dsdt.value()));
  put(out, fadt::kXDsdt, dsdt.value());
  constexpr std::uint8_t kEnterpriseServer = 4;
  put(out, fadt::kProfile, kEnterpriseServer);
  put(out, fadt::kMinor, std::uint8_t{4});
  // SMI_CMD stays 0: the machine is always in ACPI mode, SCI_EN reads as one. Latencies above 100
  // and 1000 microseconds mean that there is no C2 and no C3.
  put(out, fadt::kC2Latency, std::uint16_t{0xFFFF});
  put(out, fadt::kC3Latency, std::uint16_t{0xFFFF});
  // Devices of the ISA kind exist (COM1, RTC); an 8042 and a VGA card do not.
  put(out, fadt::kBootArch,
      static_cast<std::uint16_t>(fadt::kLegacyDevices | fadt::kNoVga | fadt::kNoAspm));
  // Without the bit for a control-method power button there is a fixed one, in PM1's status.
  put(out, fadt::kFlags,
      fadt::kWbinvd | fadt::kC1 | fadt::kNoSleepButton | fadt::kNoFixedRtcWake |
          fadt::kResetSupported | fadt::kHeadless);
  put_fixed_hardware(out);
  return end_table(std::move(table));
}

/// 5.2.10. It has no checksum.
Table build_facs() {
  Table table(64);
  const std::span<std::byte> out{table};
  put_text(out, 0, "FACS");
  put(out, 4, 64U);
  put(out, 32, std::uint8_t{2});  // version
  return table;
}

void append_iso(Table& table, unsigned source, unsigned gsi, std::uint16_t flags) {
  append(table, std::uint8_t{2});
  append(table, std::uint8_t{10});
  append(table, std::uint8_t{0});  // bus: ISA
  append(table, static_cast<std::uint8_t>(source));
  append(table, std::uint32_t{gsi});
  append(table, flags);
}

/// 5.2.12: local APICs, the IOAPIC, and which ISA interrupts do not arrive where they would.
Table build_madt(const AcpiOptions& options) {
  Table table = begin_table("APIC", 5);
  append(table, static_cast<std::uint32_t>(layout::kLocalApicBase));
  constexpr std::uint32_t kPcatCompatible = 1;
  append(table, options.pic ? kPcatCompatible : 0U);
  for (unsigned id = 0; id < options.cpus; ++id) {
    // APIC ids below 255 fit the xAPIC entry, which also x2APIC processors are listed by.
    append(table, std::uint8_t{0});
    append(table, std::uint8_t{8});
    append(table, static_cast<std::uint8_t>(id));  // processor UID
    append(table, static_cast<std::uint8_t>(id));  // APIC id
    append(table, std::uint32_t{1});               // enabled
  }
  append(table, std::uint8_t{1});
  append(table, std::uint8_t{12});
  append(table, layout::kIoApicId);
  append(table, std::uint8_t{0});
  append(table, static_cast<std::uint32_t>(layout::kIoApicBase));
  append(table, std::uint32_t{0});  // first GSI
  constexpr std::uint16_t kConforming = 0, kActiveHighLevel = 1U << 0 | 3U << 2;
  append_iso(table, layout::kPitIrq, layout::kPitGsi, kConforming);
  append_iso(table, layout::kSciIrq, layout::kSciIrq, kActiveHighLevel);
  constexpr std::uint8_t kAllProcessors = 0xFF, kLint1 = 1;
  append(table, std::uint8_t{4});
  append(table, std::uint8_t{6});
  append(table, kAllProcessors);
  append(table, kConforming);
  append(table, kLint1);
  return end_table(std::move(table));
}

Table build_dsdt(const AcpiOptions& options) {
  Table table = begin_table("DSDT", 2);
  const aml::Bytes body = dsdt_body(options);
  table.insert(table.end(), body.begin(), body.end());
  return end_table(std::move(table));
}

/// 5.2.5.3, revision 2.
Table build_rsdp(PA xsdt) {
  constexpr std::size_t kBytes = 36, kFirstPart = 20;
  Table table(kBytes);
  const std::span<std::byte> out{table};
  put_text(out, 0, "RSD PTR ");
  put_text(out, 9, "STRATA");
  put(out, 15, std::uint8_t{2});
  put(out, 20, static_cast<std::uint32_t>(kBytes));
  put(out, 24, xsdt.value());
  fix_checksum(out.first(kFirstPart), 8);
  fix_checksum(out, 32);
  return table;
}

Table build_xsdt(std::initializer_list<PA> tables) {
  Table table = begin_table("XSDT", 1);
  for (const PA pa : tables) append(table, pa.value());
  return end_table(std::move(table));
}

}  // namespace

AcpiTables build_acpi(const AcpiOptions& options, PA base) {
  AcpiTables result{base, {}};
  // The RSDP and the XSDT come first but are written last: they hold the others' addresses.
  constexpr std::size_t kXsdtAt = kAlignment, kFirstTable = 2 * kAlignment;
  result.bytes.resize(kFirstTable);
  const auto place = [&](const Table& table) {
    const std::size_t at = (result.bytes.size() + kAlignment - 1) & ~(kAlignment - 1);
    result.bytes.resize(at);
    result.bytes.insert(result.bytes.end(), table.begin(), table.end());
    return base + at;
  };
  const PA facs = place(build_facs());
  const PA dsdt = place(build_dsdt(options));
  const PA fadt_at = place(build_fadt(facs, dsdt));
  const PA madt = place(build_madt(options));
  const Table xsdt = build_xsdt({fadt_at, madt});
  static_assert(kHeaderBytes + 2 * sizeof(std::uint64_t) <= kFirstTable - kXsdtAt);
  const Table rsdp = build_rsdp(base + kXsdtAt);
  std::ranges::copy(rsdp, result.bytes.begin());
  std::ranges::copy(xsdt, result.bytes.begin() + kXsdtAt);
  return result;
}

}  // namespace strata::boot
