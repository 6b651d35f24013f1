// load(): what lies in memory and what the processor starts with, for every entry.
#include "boot/loader.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "boot/linux_boot.hpp"
#include "boot/machine_layout.hpp"
#include "boot/multiboot.hpp"
#include "boot/pvh.hpp"
#include "compress.hpp"
#include "images.hpp"
#include "test_memory.hpp"

namespace strata::boot::test {
namespace {

using layout::kMiB;
using ::testing::HasSubstr;

constexpr std::uint64_t kRam = 32 * kMiB;

KernelImage image_of(File file, bool decompress = true) {
  auto image = KernelImage::parse(std::move(file), {.decompress = decompress});
  EXPECT_TRUE(image) << image.error().message;
  return std::move(image).value();
}

KernelImage bz_of(BzSpec bz, bool decompress = true, bool pvh = false) {
  ElfSpec elf;
  elf.pvh = pvh;
  bz.payload = compress("gzip", make_elf(elf));
  return image_of(make_bzimage(bz), decompress);
}

class Loader : public ::testing::Test {
 protected:
  Result<cpu::VcpuState> run(const KernelImage& kernel) {
    return load({.kernel = kernel, .memory = map_, .initrd = initrd_, .cmdline = cmdline_},
                memory_);
  }
  template <class T>
  [[nodiscard]] T at(std::uint64_t pa) const {
    return peek<T>(memory_.from(pa), 0);
  }
  [[nodiscard]] std::string string_at(std::uint64_t pa) const {
    return reinterpret_cast<const char*>(memory_.from(pa).data());
  }
  void expect_rsdp(std::uint64_t pa) const {
    EXPECT_EQ(text_at(memory_.from(pa), 0, 8), "RSD PTR ");
  }
  void expect_initrd(std::uint64_t pa, std::uint64_t bytes) const {
    ASSERT_EQ(bytes, initrd_.size());
    EXPECT_EQ(pa & kPageMask, 0U);
    EXPECT_LE(pa + bytes, kRam);
    EXPECT_GT(pa + bytes + kPageSize, kRam) << "not as high as possible";
    EXPECT_TRUE(std::equal(initrd_.begin(), initrd_.end(), memory_.from(pa).begin()));
  }

  MemoryMap map_ = std::move(MemoryMap::make(kRam)).value();
  TestMemory memory_{kRam};
  File initrd_ = File(5000, std::byte{0x5A});
  std::string cmdline_ = "console=ttyS0 quiet";
};

TEST_F(Loader, Pvh) {
  const KernelImage kernel = image_of(make_elf(ElfSpec{}));
  const auto state = run(kernel);
  ASSERT_TRUE(state) << state.error().message;
  auto expected = cpu::flat_protected_mode(0x100004);
  const std::uint64_t info = state->gpr[cpu::RBX];
  expected.gpr[cpu::RBX] = info;
  EXPECT_EQ(*state, expected);
  EXPECT_EQ(at<std::uint32_t>(info), 0x336EC578U);
  EXPECT_EQ(at<std::uint32_t>(info + 4), 1U);
  EXPECT_EQ(at<std::uint32_t>(info + 8), 0U);
  ASSERT_EQ(at<std::uint32_t>(info + 12), 1U);
  const auto module = at<std::uint64_t>(info + 16);
  expect_initrd(at<std::uint64_t>(module), at<std::uint64_t>(module + 8));
  EXPECT_EQ(string_at(at<std::uint64_t>(info + 24)), cmdline_);
  expect_rsdp(at<std::uint64_t>(info + 32));
  const auto list = at<std::uint64_t>(info + 40);
  ASSERT_EQ(at<std::uint32_t>(info + 48), map_.e820().size());
  for (std::size_t i = 0; i < map_.e820().size(); ++i) {
    EXPECT_EQ(at<std::uint64_t>(list + 24 * i), map_.e820()[i].start.value());
    EXPECT_EQ(at<std::uint64_t>(list + 24 * i + 8), map_.e820()[i].bytes);
    EXPECT_EQ(at<std::uint32_t>(list + 24 * i + 16),
              static_cast<std::uint32_t>(map_.e820()[i].kind));
    EXPECT_EQ(at<std::uint32_t>(list + 24 * i + 20), 0U);
  }
  EXPECT_EQ(text_at(memory_.from(0x100000), 0, 11), "kernel code");
}

TEST_F(Loader, PvhWithoutInitrd) {
  initrd_.clear();
  const KernelImage kernel = image_of(make_elf(ElfSpec{}));
  const auto state = run(kernel);
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_EQ(at<std::uint32_t>(state->gpr[cpu::RBX] + 12), 0U);
  EXPECT_EQ(at<std::uint64_t>(state->gpr[cpu::RBX] + 16), 0U);
}

TEST_F(Loader, BssReadsAsZero) {
  const KernelImage kernel = image_of(make_elf(ElfSpec{}));
  ASSERT_TRUE(run(kernel));
  for (std::uint64_t pa = 0x100000 + 11; pa < 0x101000; ++pa) {
    ASSERT_EQ(at<std::uint8_t>(pa), 0U) << pa;
  }
  EXPECT_EQ(at<std::uint8_t>(0x101000), 0xEEU) << "more than the segment was cleared";
}

TEST_F(Loader, BootParams) {
  const KernelImage kernel = bz_of({});
  const auto state = run(kernel);
  ASSERT_TRUE(state) << state.error().message;
  const std::uint64_t params = state->gpr[cpu::RSI];
  EXPECT_EQ(text_at(memory_.from(params), 0x202, 4), "HdrS");
  EXPECT_EQ(at<std::uint16_t>(params + 0x206), 0x020FU);
  EXPECT_EQ(at<std::uint8_t>(params + 0x210), 0xFFU);
  EXPECT_EQ(at<std::uint8_t>(params + 0x1EF), 0U) << "sentinel: the kernel would clear fields";
  EXPECT_EQ(string_at(at<std::uint32_t>(params + 0x228)), cmdline_);
  expect_initrd(at<std::uint32_t>(params + 0x218), at<std::uint32_t>(params + 0x21C));
  expect_rsdp(at<std::uint64_t>(params + 0x70));
  ASSERT_EQ(at<std::uint8_t>(params + 0x1E8), map_.e820().size());
  for (std::size_t i = 0; i < map_.e820().size(); ++i) {
    EXPECT_EQ(at<std::uint64_t>(params + 0x2D0 + 20 * i), map_.e820()[i].start.value());
    EXPECT_EQ(at<std::uint64_t>(params + 0x2D8 + 20 * i), map_.e820()[i].bytes);
    EXPECT_EQ(at<std::uint32_t>(params + 0x2E0 + 20 * i),
              static_cast<std::uint32_t>(map_.e820()[i].kind));
  }
}

TEST_F(Loader, Linux64State) {
  const KernelImage kernel = bz_of({}, false);
  const auto state = run(kernel);
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_EQ(state->rip, 0x1000200U);
  EXPECT_EQ(state->rflags, cpu::rflags::FIXED);
  EXPECT_EQ(state->cr0 & (cpu::cr0::PE | cpu::cr0::PG), cpu::cr0::PE | cpu::cr0::PG);
  EXPECT_EQ(state->cr4, cpu::cr4::PAE);
  EXPECT_EQ(state->efer, cpu::efer::LME | cpu::efer::LMA);
  EXPECT_EQ(state->segment[cpu::CS].selector, 0x10);
  EXPECT_TRUE(state->segment[cpu::CS].long_mode());
  EXPECT_FALSE(state->segment[cpu::CS].big());
  for (const auto name : {cpu::DS, cpu::ES, cpu::SS}) {
    EXPECT_EQ(state->segment[name].selector, 0x18);
  }
  // The descriptors in memory are those that the segments were loaded from.
  EXPECT_EQ(at<std::uint64_t>(state->gdtr.base + 0x10), 0x00AF9B000000FFFFU);
  EXPECT_EQ(at<std::uint64_t>(state->gdtr.base + 0x18), 0x00CF93000000FFFFU);
  EXPECT_GE(state->gdtr.limit, 0x2F);
}

TEST_F(Loader, Linux64IdentityMap) {
  const KernelImage kernel = bz_of({}, false);
  const auto state = run(kernel);
  ASSERT_TRUE(state) << state.error().message;
  for (std::uint64_t va = 0; va < 1ULL << 32; va += kLargePageSize) {
    const auto pml4e = at<std::uint64_t>(state->cr3 + 8 * (va >> 39));
    ASSERT_EQ(pml4e & 0xFFF, 3U);
    const auto pdpte = at<std::uint64_t>((pml4e & ~kPageMask) + 8 * (va >> 30 & 511));
    ASSERT_EQ(pdpte & 0xFFF, 3U);
    const auto pde = at<std::uint64_t>((pdpte & ~kPageMask) + 8 * (va >> 21 & 511));
    ASSERT_EQ(pde, va | 0x83);
  }
  EXPECT_EQ(at<std::uint64_t>(state->cr3 + 8), 0U);
}

TEST_F(Loader, Linux32State) {
  BzSpec bz;
  bz.entry64 = false;
  const KernelImage kernel = bz_of(bz, false);
  const auto state = run(kernel);
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_EQ(state->rip, 0x1000000U);
  EXPECT_EQ(state->cr0 & cpu::cr0::PG, 0U);
  EXPECT_EQ(state->efer, 0U);
  EXPECT_EQ(state->segment[cpu::CS].selector, 0x10);
  EXPECT_TRUE(state->segment[cpu::CS].big());
  EXPECT_FALSE(state->segment[cpu::CS].long_mode());
  EXPECT_EQ(at<std::uint64_t>(state->gdtr.base + 0x10), 0x00CF9B000000FFFFU);
  for (const auto name : {cpu::RBP, cpu::RDI, cpu::RBX}) EXPECT_EQ(state->gpr[name], 0U);
}

TEST_F(Loader, Multiboot) {
  ElfSpec spec;
  spec.is64 = false;
  spec.pvh = false;
  spec.multiboot = true;
  const KernelImage kernel = image_of(make_elf(spec));
  const auto state = run(kernel);
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_EQ(state->rip, 0x100000U);
  EXPECT_EQ(state->gpr[cpu::RAX], 0x2BADB002U);
  const std::uint64_t info = state->gpr[cpu::RBX];
  EXPECT_EQ(at<std::uint32_t>(info), 0x4DU);
  EXPECT_EQ(at<std::uint32_t>(info + 4), 639U);
  EXPECT_EQ(at<std::uint32_t>(info + 8), 31 * 1024U);
  EXPECT_EQ(string_at(at<std::uint32_t>(info + 16)), "kernel " + cmdline_);
  ASSERT_EQ(at<std::uint32_t>(info + 20), 1U);
  const auto module = at<std::uint32_t>(info + 24);
  const auto start = at<std::uint32_t>(module);
  expect_initrd(start, at<std::uint32_t>(module + 4) - start);
  const auto bytes = at<std::uint32_t>(info + 44);
  ASSERT_EQ(bytes, 24 * map_.e820().size());
  const auto list = at<std::uint32_t>(info + 48);
  EXPECT_EQ(at<std::uint32_t>(list + 24 * 3), 20U);
  EXPECT_EQ(at<std::uint64_t>(list + 24 * 3 + 4), 0x100000U);
  EXPECT_EQ(at<std::uint64_t>(list + 24 * 3 + 12), 31 * kMiB);
  EXPECT_EQ(at<std::uint32_t>(list + 24 * 3 + 20), 1U);
}

/// What real mode needs of a BIOS; what the handlers do is in tests/unit/vmm.
TEST_F(Loader, MultibootFindsVectorsAndBiosData) {
  ElfSpec spec;
  spec.is64 = spec.pvh = false;
  spec.multiboot = true;
  const KernelImage kernel = image_of(make_elf(spec));
  ASSERT_TRUE(run(kernel));
  const auto handler = [&](std::uint32_t vector) {
    const auto pointer = at<std::uint32_t>(4 * vector);
    EXPECT_EQ(pointer >> 16, 0xF000U) << vector;
    return (pointer >> 16 << 4) + (pointer & 0xFFFF);
  };
  for (std::uint32_t vector = 0; vector < 256; ++vector) {
    EXPECT_GE(handler(vector), layout::kBiosRomBase) << vector;
    EXPECT_LT(handler(vector), layout::kBiosEnd) << vector;
  }
  EXPECT_EQ(handler(0x08), 0xFFEA5U) << "the PC's tick";
  EXPECT_NE(handler(0x09), handler(0x08));
  EXPECT_NE(handler(0x70), handler(0x09));
  EXPECT_EQ(at<std::uint8_t>(handler(0x10)), 0xCFU) << "IRET";
  EXPECT_EQ(at<std::uint16_t>(0x400), 0x3F8U) << "COM1";
  EXPECT_EQ(at<std::uint16_t>(0x402), 0U) << "no COM2";
  EXPECT_EQ(at<std::uint16_t>(0x40E), 0x9FC0U) << "EBDA";
  EXPECT_EQ(at<std::uint16_t>(0x413), 639U) << "KiB of memory below it";
  EXPECT_EQ(at<std::uint32_t>(0x46C), 0U) << "ticks";
  EXPECT_EQ(at<std::uint8_t>(0x9FC00), 1U) << "KiB of EBDA";
}

/// Real-mode test kernels are linked below 1 MiB; so are no others.
TEST_F(Loader, MultibootInLowMemory) {
  ElfSpec spec;
  spec.is64 = spec.pvh = false;
  spec.multiboot = true;
  spec.entry = layout::kLowImageBase;
  spec.segments = {{layout::kLowImageBase, "real mode", 0x100}};
  const KernelImage kernel = image_of(make_elf(spec));
  const auto state = run(kernel);
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_EQ(state->rip, layout::kLowImageBase);
  EXPECT_EQ(text_at(memory_.from(layout::kLowImageBase), 0, 9), "real mode");
  for (const std::uint64_t at : {layout::kLowImageBase - 4, layout::kLowImageEnd - 4}) {
    spec.segments[0].physical = at;
    EXPECT_FALSE(KernelImage::parse(make_elf(spec))) << at;
  }
}

TEST_F(Loader, InitrdStaysBelowTheKernelsLimit) {
  BzSpec bz;
  bz.initrd_limit = 0x1800000 + 0x7FF;
  const KernelImage kernel = bz_of(bz);
  const auto state = run(kernel);
  ASSERT_TRUE(state) << state.error().message;
  const auto start = at<std::uint32_t>(state->gpr[cpu::RSI] + 0x218);
  EXPECT_EQ(start, (0x1800800U - 5000) & ~kPageMask);
  // The limit is the last byte that may be used, not the first that may not.
  bz.initrd_limit = 0x17FFFFF;
  initrd_.resize(kPageSize);
  const auto exact = run(bz_of(bz));
  ASSERT_TRUE(exact) << exact.error().message;
  EXPECT_EQ(at<std::uint32_t>(exact->gpr[cpu::RSI] + 0x218), 0x17FF000U);
}

TEST_F(Loader, InitrdMustFit) {
  const KernelImage kernel = image_of(make_elf(ElfSpec{}));  // ends at 0x101000
  initrd_.assign(kRam - 0x101000, std::byte{1});
  EXPECT_TRUE(run(kernel));
  initrd_.push_back(std::byte{1});
  const auto state = run(kernel);
  ASSERT_FALSE(state);
  EXPECT_THAT(state.error().message, HasSubstr("initrd"));
  initrd_.assign(kRam + 1, std::byte{1});
  EXPECT_FALSE(run(kernel));
}

TEST_F(Loader, KernelMustFit) {
  ElfSpec spec;
  spec.segments = {{0x100000, "kernel code", kRam - 0x100000}};
  initrd_.clear();
  EXPECT_TRUE(run(image_of(make_elf(spec))));
  spec.segments[0].memory_bytes += 1;
  const auto state = run(image_of(make_elf(spec)));
  ASSERT_FALSE(state);
  EXPECT_THAT(state.error().message, HasSubstr("the VM has 32 MiB"));
  // init_size counts even where the file has nothing.
  BzSpec bz;
  bz.init_bytes = static_cast<std::uint32_t>(kRam - bz.preferred);
  EXPECT_TRUE(run(bz_of(bz, false)));
  bz.init_bytes += 1;
  EXPECT_FALSE(run(bz_of(bz, false)));
}

TEST_F(Loader, CommandLine) {
  BzSpec bz;
  bz.max_cmdline = 10;
  const KernelImage kernel = bz_of(bz);
  cmdline_ = "0123456789";
  EXPECT_TRUE(run(kernel));
  cmdline_ += "x";
  const auto longer = run(kernel);
  ASSERT_FALSE(longer);
  EXPECT_THAT(longer.error().message, HasSubstr("11 characters; this kernel takes 10"));
  cmdline_ = std::string{"a\0b", 3};
  const auto nul = run(kernel);
  ASSERT_FALSE(nul);
  EXPECT_THAT(nul.error().message, HasSubstr("NUL"));
  bz.max_cmdline = 0xFFFFFFFF;
  cmdline_.assign(layout::kMaxCmdlineBytes - 1, 'x');
  EXPECT_TRUE(run(bz_of(bz)));
  cmdline_ += "x";
  EXPECT_FALSE(run(bz_of(bz)));
}

TEST_F(Loader, CpuCount) {
  const KernelImage kernel = image_of(make_elf(ElfSpec{}));
  for (const unsigned cpus : {0U, layout::kMaxCpus + 1}) {
    const auto state = load({.kernel = kernel, .memory = map_, .cpus = cpus}, memory_);
    ASSERT_FALSE(state);
    EXPECT_THAT(state.error().message, HasSubstr("vCPUs"));
  }
  EXPECT_TRUE(load({.kernel = kernel, .memory = map_, .cpus = layout::kMaxCpus}, memory_));
}

TEST_F(Loader, EveryFailureOfTheSinkIsReported) {
  ElfSpec multiboot;
  multiboot.is64 = multiboot.pvh = false;
  multiboot.multiboot = true;
  BzSpec bz32;
  bz32.entry64 = false;
  KernelImage kernels[] = {image_of(make_elf(ElfSpec{})), image_of(make_elf(multiboot)), bz_of({}),
                           bz_of(bz32, false)};
  for (const KernelImage& kernel : kernels) {
    SCOPED_TRACE(kernel.description());
    TestMemory counter{kRam};
    ASSERT_TRUE(load({.kernel = kernel, .memory = map_, .initrd = initrd_}, counter));
    ASSERT_GE(counter.calls(), 5U);
    for (unsigned call = 0; call < counter.calls(); ++call) {
      TestMemory memory{kRam};
      memory.fail_at(call);
      const auto state = load({.kernel = kernel, .memory = map_, .initrd = initrd_}, memory);
      ASSERT_FALSE(state) << call;
      EXPECT_EQ(state.error().message, "injected");
    }
  }
}

/// What the loader builds in low memory must not overlap, however large it gets.
TEST(LowMemory, PartsAreDisjoint) {
  using namespace layout;
  struct Part {
    std::uint64_t start, bytes;
  };
  constexpr std::uint64_t kEntries = 5;  // the longest e820
  const Part parts[] = {
      {kVectorTableBase, 256 * 4},
      {kBiosDataBase, kBiosDataBytes},
      {kGdtBase, 48},
      {kStartInfoBase,
       128 + multiboot_info::kModuleBytes + kEntries * multiboot_info::kMapEntryBytes},
      {kBootParamsBase, zero_page::kBytes},
      {std::min(kPageTablesBase, kLowImageBase), 0},
      {kPageTablesBase, 6 * kPageSize},
      {kCmdlineBase, kMaxCmdlineBytes},
      {kEbdaBase, 0},
  };
  for (std::size_t i = 0; i + 1 < std::size(parts); ++i) {
    EXPECT_LE(parts[i].start + parts[i].bytes, parts[i + 1].start) << i;
  }
}

}  // namespace
}  // namespace strata::boot::test
