#include "images.hpp"

#include <elf.h>

#include <algorithm>

namespace strata::boot::test {
namespace {

void add(File& out, const void* data, std::size_t bytes) {
  const auto* from = static_cast<const std::byte*>(data);
  out.insert(out.end(), from, from + bytes);
}

template <class Ehdr, class Phdr>
File elf_of(const ElfSpec& spec, unsigned char elf_class, std::uint16_t machine) {
  using Word = decltype(Phdr::p_filesz);
  const std::size_t headers = spec.segments.size() + (spec.pvh ? 1 : 0);
  Ehdr eh{};
  std::memcpy(eh.e_ident, ELFMAG, SELFMAG);
  eh.e_ident[EI_CLASS] = elf_class;
  eh.e_ident[EI_DATA] = ELFDATA2LSB;
  eh.e_ident[EI_VERSION] = EV_CURRENT;
  eh.e_type = spec.type;
  eh.e_machine = machine;
  eh.e_version = EV_CURRENT;
  eh.e_entry = static_cast<decltype(eh.e_entry)>(spec.entry);
  eh.e_phoff = sizeof eh;
  eh.e_ehsize = sizeof eh;
  eh.e_phentsize = sizeof(Phdr);
  eh.e_phnum = static_cast<std::uint16_t>(headers);
  std::vector<Phdr> table(headers);
  File data;
  const std::size_t data_at = sizeof eh + headers * sizeof(Phdr);
  for (std::size_t i = 0; i < spec.segments.size(); ++i) {
    const TestSegment& s = spec.segments[i];
    table[i].p_type = PT_LOAD;
    table[i].p_offset = static_cast<decltype(table[i].p_offset)>(data_at + data.size());
    table[i].p_paddr = static_cast<decltype(table[i].p_paddr)>(s.physical);
    table[i].p_filesz = static_cast<Word>(s.data.size());
    table[i].p_memsz = static_cast<Word>(s.memory_bytes);
    add(data, s.data.data(), s.data.size());
  }
  while (data.size() % 4 != 0) data.push_back(std::byte{0});
  if (spec.multiboot) {
    const std::uint32_t flags = 3;
    const std::uint32_t header[] = {0x1BADB002, flags, 0U - 0x1BADB002U - flags};
    while ((data_at + data.size()) % 4 != 0) data.push_back(std::byte{0});
    add(data, header, sizeof header);
  }
  if (spec.pvh) {
    Phdr& note = table.back();
    note.p_type = PT_NOTE;
    note.p_offset = static_cast<decltype(note.p_offset)>(data_at + data.size());
    note.p_align = 4;
    // An unrelated note first, as in real kernels.
    const std::uint32_t other[] = {4, 3, 1, 0x00554E47, 0x00636261};
    const std::uint32_t xen[] = {4, spec.pvh_bytes, 18, 0x006E6558};
    add(data, other, sizeof other);
    add(data, xen, sizeof xen);
    add(data, &spec.pvh_entry, spec.pvh_bytes);
    note.p_filesz = static_cast<Word>(sizeof other + sizeof xen + spec.pvh_bytes);
    note.p_memsz = note.p_filesz;
  }
  File file;
  add(file, &eh, sizeof eh);
  add(file, table.data(), table.size() * sizeof(Phdr));
  add(file, data.data(), data.size());
  return file;
}

}  // namespace

File make_elf(const ElfSpec& spec) {
  return spec.is64 ? elf_of<Elf64_Ehdr, Elf64_Phdr>(spec, ELFCLASS64, EM_X86_64)
                   : elf_of<Elf32_Ehdr, Elf32_Phdr>(spec, ELFCLASS32, EM_386);
}

File make_bzimage(const BzSpec& spec) {
  constexpr std::size_t kSetup = 4 * 512, kCode = 0x400, kVersionAt = 0x300;
  const std::size_t paragraphs = (kCode + spec.payload.size() + 15) / 16;
  File file(kSetup + paragraphs * 16);
  std::copy(spec.payload.begin(), spec.payload.end(), file.begin() + kSetup + kCode);
  const auto text = [&](std::size_t at, std::string_view s) {
    std::memcpy(file.data() + at, s.data(), s.size());
  };
  patch(file, 0x1F1, std::uint8_t{3});
  patch(file, 0x1F4, static_cast<std::uint32_t>(paragraphs));
  patch(file, 0x1FE, std::uint16_t{0xAA55});
  patch(file, 0x200, std::uint16_t{0x6AEB});  // jmp: the header ends at 26Ch
  text(0x202, "HdrS");
  patch(file, 0x206, spec.protocol);
  patch(file, 0x20E, static_cast<std::uint16_t>(kVersionAt - 0x200));
  patch(file, 0x211, std::uint8_t{1});
  patch(file, 0x22C, spec.initrd_limit);
  patch(file, 0x236, static_cast<std::uint16_t>(spec.entry64 ? 1 : 0));
  patch(file, 0x238, spec.max_cmdline);
  patch(file, 0x248, static_cast<std::uint32_t>(kCode));
  patch(file, 0x24C, static_cast<std::uint32_t>(spec.payload.size()));
  patch(file, 0x258, spec.preferred);
  patch(file, 0x260, spec.init_bytes);
  text(kVersionAt, spec.version);
  text(kSetup + 0x200, "entry64");
  return file;
}

}  // namespace strata::boot::test
