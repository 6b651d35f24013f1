// The ACPI tables: checksums, links and fields, and the judgement of ACPICA's own disassembler.
#include "boot/acpi.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

#include "boot/aml.hpp"
#include "boot/machine_layout.hpp"
#include "images.hpp"

namespace strata::boot::test {
namespace {

using ::testing::HasSubstr;

constexpr PA kBase{0xE0000};

class Acpi : public ::testing::TestWithParam<AcpiOptions> {
 protected:
  [[nodiscard]] std::span<const std::byte> at(std::uint64_t pa) const {
    return std::span{tables_.bytes}.subspan(pa - kBase.value());
  }
  /// The table at `pa`, by the length it says.
  [[nodiscard]] std::span<const std::byte> table(std::uint64_t pa) const {
    return at(pa).first(peek<std::uint32_t>(at(pa), 4));
  }
  [[nodiscard]] std::uint64_t xsdt() const { return peek<std::uint64_t>(tables_.bytes, 24); }
  [[nodiscard]] std::uint64_t listed(std::size_t i) const {
    return peek<std::uint64_t>(table(xsdt()), 36 + 8 * i);
  }
  [[nodiscard]] std::span<const std::byte> fadt() const { return table(listed(0)); }
  [[nodiscard]] std::span<const std::byte> madt() const { return table(listed(1)); }
  [[nodiscard]] std::span<const std::byte> dsdt() const {
    return table(peek<std::uint64_t>(fadt(), 140));
  }

  static unsigned sum(std::span<const std::byte> bytes) {
    return std::accumulate(
               bytes.begin(), bytes.end(), 0U,
               [](unsigned s, std::byte b) { return s + std::to_integer<unsigned>(b); }) &
           0xFF;
  }

  AcpiTables tables_ = build_acpi(GetParam(), kBase);
};

TEST_P(Acpi, RsdpAndChecksums) {
  EXPECT_EQ(tables_.rsdp(), kBase);
  EXPECT_EQ(text_at(tables_.bytes, 0, 8), "RSD PTR ");
  EXPECT_EQ(sum(at(kBase.value()).first(20)), 0U);
  EXPECT_EQ(sum(at(kBase.value()).first(36)), 0U);
  EXPECT_EQ(peek<std::uint32_t>(tables_.bytes, 16), 0U) << "there is no RSDT";
  EXPECT_EQ(text_at(table(xsdt()), 0, 4), "XSDT");
  EXPECT_EQ(table(xsdt()).size(), 36U + 2 * 8);
  EXPECT_EQ(text_at(fadt(), 0, 4), "FACP");
  EXPECT_EQ(text_at(madt(), 0, 4), "APIC");
  EXPECT_EQ(text_at(dsdt(), 0, 4), "DSDT");
  for (const auto t : {table(xsdt()), fadt(), madt(), dsdt()}) EXPECT_EQ(sum(t), 0U);
  EXPECT_LE(tables_.bytes.size(), 0x20000U);
}

TEST_P(Acpi, Fadt) {
  ASSERT_EQ(fadt().size(), 276U);
  EXPECT_EQ(peek<std::uint32_t>(fadt(), 40), peek<std::uint64_t>(fadt(), 140));
  const auto facs = peek<std::uint32_t>(fadt(), 36);
  EXPECT_EQ(facs % 64, 0U);
  EXPECT_EQ(text_at(at(facs), 0, 4), "FACS");
  EXPECT_EQ(peek<std::uint16_t>(fadt(), 46), 9U);
  EXPECT_EQ(peek<std::uint32_t>(fadt(), 48), 0U) << "SMI_CMD: always in ACPI mode";
  EXPECT_EQ(peek<std::uint32_t>(fadt(), 56), 0x600U);
  EXPECT_EQ(peek<std::uint32_t>(fadt(), 64), 0x604U);
  EXPECT_EQ(peek<std::uint32_t>(fadt(), 76), 0x608U);
  EXPECT_EQ(peek<std::uint32_t>(fadt(), 80), 0x620U);
  EXPECT_EQ(peek<std::uint32_t>(fadt(), 88), 0x04000204U) << "PM1 event 4, control 2, timer 4";
  EXPECT_EQ(peek<std::uint8_t>(fadt(), 92), 4U);
  const auto arch = peek<std::uint16_t>(fadt(), 109);
  EXPECT_EQ(arch & 0x27, 0x05) << "legacy devices, no 8042, no VGA, an RTC";
  const auto flags = peek<std::uint32_t>(fadt(), 112);
  EXPECT_EQ(flags >> 20 & 1, 0U) << "not hardware-reduced";
  EXPECT_EQ(flags >> 10 & 1, 1U) << "reset register";
  EXPECT_EQ(peek<std::uint32_t>(fadt(), 116), 0x01000801U);
  EXPECT_EQ(peek<std::uint64_t>(fadt(), 120), 0xCF9U);
  EXPECT_EQ(peek<std::uint8_t>(fadt(), 128), 6U);
  // Each block's generic address repeats the legacy field.
  constexpr std::pair<std::size_t, std::size_t> kBlocks[] = {
      {56, 148}, {64, 172}, {76, 208}, {80, 220}};
  for (const auto& [legacy, generic] : kBlocks) {
    EXPECT_EQ(peek<std::uint8_t>(fadt(), generic), 1U);
    EXPECT_EQ(peek<std::uint64_t>(fadt(), generic + 4), peek<std::uint32_t>(fadt(), legacy));
  }
}

TEST_P(Acpi, Madt) {
  const auto t = madt();
  EXPECT_EQ(peek<std::uint32_t>(t, 36), 0xFEE00000U);
  EXPECT_EQ(peek<std::uint32_t>(t, 40), GetParam().pic ? 1U : 0U);
  unsigned cpus = 0;
  unsigned ioapics = 0;
  std::vector<std::array<std::uint32_t, 3>> overrides;
  std::size_t i = 44;
  while (i < t.size()) {
    const auto type = peek<std::uint8_t>(t, i);
    if (type == 0) {
      EXPECT_EQ(peek<std::uint8_t>(t, i + 2), cpus);
      EXPECT_EQ(peek<std::uint8_t>(t, i + 3), cpus);
      EXPECT_EQ(peek<std::uint32_t>(t, i + 4), 1U);
      ++cpus;
    } else if (type == 1) {
      ++ioapics;
      EXPECT_EQ(peek<std::uint32_t>(t, i + 4), 0xFEC00000U);
      EXPECT_EQ(peek<std::uint32_t>(t, i + 8), 0U);
    } else if (type == 2) {
      overrides.push_back({peek<std::uint8_t>(t, i + 3), peek<std::uint32_t>(t, i + 4),
                           peek<std::uint16_t>(t, i + 8)});
    }
    ASSERT_GE(peek<std::uint8_t>(t, i + 1), 6U);
    i += peek<std::uint8_t>(t, i + 1);
  }
  EXPECT_EQ(i, t.size());
  EXPECT_EQ(cpus, GetParam().cpus);
  EXPECT_EQ(ioapics, 1U);
  using Override = std::array<std::uint32_t, 3>;
  EXPECT_THAT(overrides, ::testing::ElementsAre(Override{0, 2, 0}, Override{9, 9, 0xD}));
}

TEST_P(Acpi, IaslAgrees) {
  if (std::system("command -v iasl >/dev/null 2>&1") != 0) {
    GTEST_SKIP() << "iasl is not installed (package acpica-tools)";
  }
  const std::filesystem::path folder =
      std::filesystem::path{::testing::TempDir()} /
      ("strata-acpi-" + std::to_string(GetParam().cpus) + (GetParam().pci ? "-pci-" : "-") +
       std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const auto save = [&](const char* name, std::span<const std::byte> bytes) {
    std::ofstream{folder / name, std::ios::binary}.write(
        reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  };
  save("dsdt.aml", dsdt());
  save("facp.aml", fadt());
  save("apic.aml", madt());
  save("xsdt.aml", table(xsdt()));
  const auto run = [&](const std::string& arguments) {
    return std::system(
        ("cd '" + folder.string() + "' && iasl " + arguments + " >log 2>&1").c_str());
  };
  const auto read = [&](const char* name) {
    std::stringstream text;
    text << std::ifstream{folder / name}.rdbuf();
    return text.str();
  };
  ASSERT_EQ(run("-d dsdt.aml facp.aml apic.aml xsdt.aml"), 0) << read("log");
  EXPECT_THAT(read("log"), ::testing::Not(HasSubstr("rror")));
  const std::string source = read("dsdt.dsl");
  EXPECT_THAT(source, HasSubstr("EisaId (\"PNP0501\")"));
  EXPECT_THAT(source, HasSubstr("Name (\\_S5, Package (0x04)"));
  EXPECT_EQ(source.find("PNP0A03") != std::string::npos, GetParam().pci);
  // What the disassembler made must compile again without a complaint.
  ASSERT_EQ(run("-ve dsdt.dsl"), 0) << read("log");
  EXPECT_THAT(read("log"), HasSubstr("0 Errors, 0 Warnings"));
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Machines, Acpi,
                         ::testing::Values(AcpiOptions{.cpus = 1}, AcpiOptions{.cpus = 3},
                                           AcpiOptions{.cpus = 2, .pci = true},
                                           AcpiOptions{.cpus = 64, .pci = true, .pic = false}),
                         [](const auto& o) {
                           return "Cpus" + std::to_string(o.param.cpus) +
                                  (o.param.pci ? "Pci" : "");
                         });

std::vector<unsigned> numbers(const aml::Bytes& bytes) {
  std::vector<unsigned> out;
  for (const std::byte b : bytes) out.push_back(std::to_integer<unsigned>(b));
  return out;
}

TEST(Aml, Integers) {
  using ::testing::ElementsAre;
  EXPECT_THAT(numbers(aml::integer(0)), ElementsAre(0));
  EXPECT_THAT(numbers(aml::integer(1)), ElementsAre(1));
  EXPECT_THAT(numbers(aml::integer(2)), ElementsAre(0x0A, 2));
  EXPECT_THAT(numbers(aml::integer(0xFF)), ElementsAre(0x0A, 0xFF));
  EXPECT_THAT(numbers(aml::integer(0x100)), ElementsAre(0x0B, 0, 1));
  EXPECT_THAT(numbers(aml::integer(0x10000)), ElementsAre(0x0C, 0, 0, 1, 0));
  EXPECT_EQ(aml::integer(1ULL << 32).size(), 9U);
}

TEST(Aml, EisaId) {
  // The encoding that the specification's example gives for PNP0C09 is 0x090CD041.
  EXPECT_THAT(numbers(aml::eisa_id("PNP0C09")),
              ::testing::ElementsAre(0x0C, 0x41, 0xD0, 0x0C, 0x09));
}

/// PkgLength counts itself; one byte up to 63, two up to 4095, three above.
TEST(Aml, PackageLengths) {
  for (const std::size_t body : {58U, 59U, 4088U, 4089U, 4090U, 100000U}) {
    const aml::Bytes scope = aml::scope("ABCD", aml::Bytes(body));
    const unsigned lead = std::to_integer<unsigned>(scope[1]);
    std::size_t length = lead >> 6 == 0 ? lead : lead & 0xF;
    for (unsigned i = 0; i < lead >> 6; ++i) {
      length |= std::size_t{std::to_integer<unsigned>(scope[2 + i])} << (4 + 8 * i);
    }
    EXPECT_EQ(length, scope.size() - 1) << body;
  }
  EXPECT_EQ(aml::scope("ABCD", aml::Bytes(58)).size(), 1U + 1 + 4 + 58);
  EXPECT_EQ(aml::scope("ABCD", aml::Bytes(59)).size(), 1U + 2 + 4 + 59);
}

}  // namespace
}  // namespace strata::boot::test
