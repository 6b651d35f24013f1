#include "boot/elf.hpp"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "boot/bytes.hpp"
#include "boot/machine_layout.hpp"

namespace strata::boot {
namespace {

constexpr std::uint64_t kAddressLimit = 1ULL << 32;  // every entry protocol starts below 4 GiB
constexpr std::uint16_t kMaxProgramHeaders = 128;
constexpr std::uint32_t kPvhNote = 18;  // XEN_ELFNOTE_PHYS32_ENTRY (Xen, public/elfnote.h)

std::string hex(std::uint64_t value) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string text;
  do {
    text.insert(text.begin(), kDigits[value & 0xF]);
    value >>= 4;
  } while (value != 0);
  return "0x" + text;
}

/// The fields of a program header that matter, of either class.
struct ProgramHeader {
  std::uint32_t type = 0;
  std::uint64_t offset = 0, physical = 0, file_bytes = 0, memory_bytes = 0, align = 0;
};

class ElfParser {
 public:
  ElfParser(std::span<const std::byte> file, const char* what) : file_{file}, what_{what} {}

  Result<ElfImage> parse() {
    if (auto ok = header(); !ok) return fail(ok.error().message);
    image_.multiboot = find_multiboot();
    for (std::uint16_t i = 0; i < header_count_; ++i) {
      const ProgramHeader ph = program_header(i);
      if (ph.type == PT_LOAD) {
        if (auto ok = load_segment(ph, i); !ok) return fail(ok.error().message);
      } else if (ph.type == PT_NOTE) {
        if (auto ok = notes(ph); !ok) return fail(ok.error().message);
      }
    }
    if (auto ok = finish(); !ok) return fail(ok.error().message);
    return std::move(image_);
  }

 private:
  Unexpected<Error> bad(const std::string& why) const {
    return fail(std::string{what_} + ": " + why);
  }

  /// Identification, architecture and where the program headers are (ELF gABI, "ELF Header").
  Result<void> header() {
    const auto elf_class = file_.get<std::uint8_t>(EI_CLASS);
    if (elf_class != ELFCLASS32 && elf_class != ELFCLASS64) {
      return bad("ELF class " + std::to_string(elf_class) + " is neither 32-bit nor 64-bit");
    }
    image_.is64 = elf_class == ELFCLASS64;
    const std::uint64_t header_bytes = image_.is64 ? sizeof(Elf64_Ehdr) : sizeof(Elf32_Ehdr);
    if (file_.size() < header_bytes) {
      return bad("the ELF header is cut off at " + std::to_string(file_.size()) + " bytes");
    }
    if (file_.get<std::uint8_t>(EI_DATA) != ELFDATA2LSB) {
      return bad("the ELF file is big-endian; x86 is little-endian");
    }
    const auto machine = file_.get<std::uint16_t>(offsetof(Elf64_Ehdr, e_machine));
    const std::uint16_t wanted = image_.is64 ? EM_X86_64 : EM_386;
    if (machine != wanted) {
      return bad("ELF machine " + std::to_string(machine) + " is not x86; " +
                 (image_.is64 ? "x86-64 is 62" : "i386 is 3"));
    }
    const auto type = file_.get<std::uint16_t>(offsetof(Elf64_Ehdr, e_type));
    if (type != ET_EXEC) {
      return bad("ELF type " + std::to_string(type) +
                 " is not an executable linked at a fixed "
                 "address (type 2)");
    }
    return program_header_table();
  }

  Result<void> program_header_table() {
    const bool is64 = image_.is64;
    image_.entry = is64 ? file_.get<std::uint64_t>(offsetof(Elf64_Ehdr, e_entry))
                        : file_.get<std::uint32_t>(offsetof(Elf32_Ehdr, e_entry));
    table_ = is64 ? file_.get<std::uint64_t>(offsetof(Elf64_Ehdr, e_phoff))
                  : file_.get<std::uint32_t>(offsetof(Elf32_Ehdr, e_phoff));
    const auto entry_bytes = file_.get<std::uint16_t>(is64 ? offsetof(Elf64_Ehdr, e_phentsize)
                                                           : offsetof(Elf32_Ehdr, e_phentsize));
    header_count_ = file_.get<std::uint16_t>(is64 ? offsetof(Elf64_Ehdr, e_phnum)
                                                  : offsetof(Elf32_Ehdr, e_phnum));
    header_bytes_ = is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
    if (header_count_ == 0 || header_count_ > kMaxProgramHeaders) {
      return bad(std::to_string(header_count_) + " program headers; a kernel has 1 to " +
                 std::to_string(kMaxProgramHeaders));
    }
    if (entry_bytes != header_bytes_) {
      return bad("program headers of " + std::to_string(entry_bytes) +
                 " bytes; this ELF class has " + std::to_string(header_bytes_));
    }
    if (!file_.sub(table_, std::uint64_t{header_count_} * header_bytes_)) {
      return bad("the program headers at " + hex(table_) + " lie beyond the end of the file");
    }
    return {};
  }

  ProgramHeader program_header(std::uint16_t index) const {
    const std::uint64_t at = table_ + std::uint64_t{index} * header_bytes_;
    const auto u32 = [&](std::size_t field) -> std::uint64_t {
      return file_.get<std::uint32_t>(at + field);
    };
    const auto u64 = [&](std::size_t field) { return file_.get<std::uint64_t>(at + field); };
    const auto type = static_cast<std::uint32_t>(u32(0));
    if (image_.is64) {
      return {type,
              u64(offsetof(Elf64_Phdr, p_offset)),
              u64(offsetof(Elf64_Phdr, p_paddr)),
              u64(offsetof(Elf64_Phdr, p_filesz)),
              u64(offsetof(Elf64_Phdr, p_memsz)),
              u64(offsetof(Elf64_Phdr, p_align))};
    }
    return {type,
            u32(offsetof(Elf32_Phdr, p_offset)),
            u32(offsetof(Elf32_Phdr, p_paddr)),
            u32(offsetof(Elf32_Phdr, p_filesz)),
            u32(offsetof(Elf32_Phdr, p_memsz)),
            u32(offsetof(Elf32_Phdr, p_align))};
  }

  Result<void> load_segment(const ProgramHeader& ph, std::uint16_t index) {
    const std::string name = "segment " + std::to_string(index);
    const auto data = file_.sub(ph.offset, ph.file_bytes);
    if (!data) {
      return bad(name + " (" + hex(ph.file_bytes) + " bytes at file offset " + hex(ph.offset) +
                 ") lies beyond the end of the file");
    }
    if (ph.memory_bytes < ph.file_bytes) {
      return bad(name + " has more bytes in the file than in memory");
    }
    if (ph.memory_bytes == 0) return {};
    const bool high = ph.physical >= layout::kKernelBase && ph.physical < kAddressLimit &&
                      ph.memory_bytes <= kAddressLimit - ph.physical;
    if (!high && !fits_low(ph)) {
      return bad(name + " (" + hex(ph.memory_bytes) + " bytes at physical " + hex(ph.physical) +
                 ") is not between 1 MiB and 4 GiB");
    }
    image_.segments.push_back({ph.physical, data->bytes(), ph.memory_bytes});
    return {};
  }

  /// Real-mode test kernels load in low memory, where Multiboot's entry leaves them room.
  bool fits_low(const ProgramHeader& ph) const {
    return image_.multiboot && ph.physical >= layout::kLowImageBase &&
           ph.physical < layout::kLowImageEnd &&
           ph.memory_bytes <= layout::kLowImageEnd - ph.physical;
  }

  /// Looks for Xen's PHYS32_ENTRY among the notes of one segment (ELF gABI, "Note Section").
  Result<void> notes(const ProgramHeader& ph) {
    const auto range = file_.sub(ph.offset, ph.file_bytes);
    if (!range) return bad("a note segment lies beyond the end of the file");
    // gABI wants 4 or, in ELF64, sometimes 8; everything that writes Xen notes pads to 4.
    const std::uint64_t align = ph.align == 8 ? 8 : 4;
    const auto padded = [align](std::uint64_t n) { return (n + align - 1) & ~(align - 1); };
    for (std::uint64_t at = 0; at + 12 <= range->size();) {
      const std::uint64_t name_bytes = range->get<std::uint32_t>(at);
      const std::uint64_t desc_bytes = range->get<std::uint32_t>(at + 4);
      const auto type = range->get<std::uint32_t>(at + 8);
      const std::uint64_t desc_at = padded(at + 12 + name_bytes);
      const auto name = range->sub(at + 12, name_bytes);
      const auto desc = range->sub(desc_at, desc_bytes);
      if (!name || !desc) return bad("a note reaches beyond the end of its segment");
      if (type == kPvhNote && name_bytes == 4 && name->starts_with({"Xen\0", 4})) {
        if (auto ok = pvh_note(*desc); !ok) return ok;
      }
      at = padded(desc_at + desc_bytes);
    }
    return {};
  }

  Result<void> pvh_note(ByteView desc) {
    if (desc.size() != 4 && desc.size() != 8) {
      return bad("the PVH entry note has " + std::to_string(desc.size()) +
                 " bytes; an address has 4 or 8");
    }
    image_.pvh_entry = desc.size() == 4 ? desc.get<std::uint32_t>(0) : desc.get<std::uint64_t>(0);
    return {};
  }

  /// A Multiboot 1 header (Multiboot 0.6.96, 3.1): in the first 8 KiB, 4-byte aligned.
  bool find_multiboot() const {
    for (std::uint64_t at = 0; at + 12 <= std::min<std::uint64_t>(file_.size(), 8192); at += 4) {
      if (file_.get<std::uint32_t>(at) != 0x1BADB002) continue;
      const auto flags = file_.get<std::uint32_t>(at + 4);
      const auto sum = file_.get<std::uint32_t>(at + 8) + 0x1BADB002U + flags;
      // Bits 0 and 1 ask for page-aligned modules and memory information, which we give; 2 is a
      // wish for a video mode; higher ones below 16 would be requirements that we do not know.
      if (sum == 0 && (flags & 0xFFF8) == 0) return true;
    }
    return false;
  }

  Result<void> finish() {
    auto& segments = image_.segments;
    if (segments.empty()) return bad("the ELF file has no segment to load");
    std::sort(segments.begin(), segments.end(),
              [](const auto& a, const auto& b) { return a.physical < b.physical; });
    for (std::size_t i = 1; i < segments.size(); ++i) {
      const LoadSegment& before = segments[i - 1];
      if (before.physical + before.memory_bytes > segments[i].physical) {
        return bad("segments overlap at physical " + hex(segments[i].physical));
      }
    }
    if (image_.pvh_entry && !in_file_data(segments, *image_.pvh_entry)) {
      return bad("the PVH entry " + hex(*image_.pvh_entry) + " is in no segment");
    }
    return {};
  }

  ByteView file_;
  const char* what_;
  ElfImage image_;
  std::uint64_t table_ = 0;
  std::uint16_t header_count_ = 0;
  std::uint64_t header_bytes_ = 0;
};

}  // namespace

bool looks_like_elf(std::span<const std::byte> file) noexcept {
  return ByteView{file}.starts_with({ELFMAG, SELFMAG});
}

bool in_file_data(std::span<const LoadSegment> segments, std::uint64_t address) noexcept {
  return std::any_of(segments.begin(), segments.end(), [address](const LoadSegment& s) {
    return address >= s.physical && address - s.physical < s.data.size();
  });
}

Result<ElfImage> parse_elf(std::span<const std::byte> file, const char* what) {
  return ElfParser{file, what}.parse();
}

}  // namespace strata::boot
