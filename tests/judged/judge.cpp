#include "judge.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

extern "C" char** environ;

namespace strata::judged {
namespace {

/// Runs a program to its end, its output in `output` unless that is empty; its exit status, or -1.
int run(std::vector<std::string> arguments, const std::string& output = {}) {
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  if (!output.empty()) {
    constexpr int kCreate = O_WRONLY | O_CREAT | O_TRUNC;
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, output.c_str(), kCreate, 0600);
    posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
  }
  pid_t child = 0;
  const int failed = posix_spawnp(&child, argv.front(), &files, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  if (failed != 0) return -1;
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
  return WEXITSTATUS(status);
}

/// A temporary folder, gone in the end.
class Folder {
 public:
  Folder() : path_{testing::TempDir() + "strata-bochs-XXXXXX"} {
    if (mkdtemp(path_.data()) == nullptr) throw std::runtime_error{"no folder for the judge"};
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::string contents(const std::string& file) {
  std::ifstream in{file, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}
void store(const std::string& file, const void* bytes, std::size_t count) {
  std::ofstream out{file, std::ios::binary};
  out.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(count));
}

/// Puts the questions into the mailbox.
void ask(JudgeMemory& memory, const std::vector<Probe>& probes, const std::vector<MPN>& frames) {
  ASSERT_LE(probes.size(), kMaxProbes);
  ASSERT_LE(frames.size(), kMaxFrames);
  Mailbox& box = memory.mailbox();
  box.magic = kMagic;
  box.count = probes.size();
  box.done = 0;
  box.frames = frames.size();
  for (std::size_t i = 0; i < frames.size(); ++i) box.frame[i] = address_of(frames[i]).value();
  std::memcpy(box.probes, probes.data(), probes.size() * sizeof(Probe));
}

/// Bochs's firmware: kernel, then count and (address, page) of all that it has to put in place, and
/// rom.S at the end. (Its images of RAM are of use up to 128 KiB only.)
std::string rom_image(JudgeMemory& memory) {
  std::string rom = contents(STRATA_JUDGE_VMX);
  rom.resize(kRomPages);
  std::vector<std::uint64_t> pages;
  for (const MPN frame : memory.frames()) pages.push_back(address_of(frame).value());
  const std::uint64_t used = kProbesAt + memory.mailbox().count * sizeof(Probe);
  for (std::uint64_t at = 0; at < used; at += kPageSize) pages.push_back(kMailbox + at);
  const std::uint64_t count = pages.size();
  rom.append(reinterpret_cast<const char*>(&count), sizeof count);
  for (const std::uint64_t ma : pages) {
    rom.append(reinterpret_cast<const char*>(&ma), sizeof ma);
    rom.append(reinterpret_cast<const char*>(memory.base() + ma), kPageSize);
  }
  const std::string start = contents(STRATA_JUDGE_ROM);
  if (rom.size() + start.size() > kRomBytes) return {};
  rom.resize(kRomBytes - start.size());
  return rom + start;
}

}  // namespace

JudgeMemory::JudgeMemory() : path_{testing::TempDir() + "strata-judge-XXXXXX"} {
  const int fd = mkstemp(path_.data());
  if (fd < 0) throw std::runtime_error{"no file for the judge's memory"};
  void* base = MAP_FAILED;
  if (ftruncate(fd, kBytes) == 0) {
    base = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  close(fd);
  if (base == MAP_FAILED) {
    unlink(path_.c_str());
    throw std::runtime_error{"cannot map the judge's memory"};
  }
  base_ = static_cast<std::byte*>(base);
}

JudgeMemory::~JudgeMemory() {
  munmap(base_, kBytes);
  unlink(path_.c_str());
}

std::byte* JudgeMemory::at(MPN frame) const {
  const std::uint64_t ma = address_of(frame).value();
  if (ma < kReserved || ma >= kBytes) throw std::runtime_error{"a frame where the kernel lies"};
  return base_ + ma;
}

void JudgeMemory::put(MachineWindow window, MPN frame) {
  std::memcpy(at(frame), window.host(address_of(frame)), kPageSize);
  frames_.push_back(frame);
}

std::string JudgeMemory::difference(MachineWindow window, MPN frame) const {
  std::ostringstream out;
  unsigned found = 0;
  for (std::uint64_t offset = 0; offset < kPageSize; offset += sizeof(std::uint64_t)) {
    std::uint64_t ours = 0;
    std::uint64_t theirs = 0;
    std::memcpy(&ours, window.host(address_of(frame)) + offset, sizeof ours);
    std::memcpy(&theirs, at(frame) + offset, sizeof theirs);
    if (ours == theirs || ++found > 4) continue;
    out << std::hex << " at " << address_of(frame).value() + offset << ": ours " << ours
        << ", theirs " << theirs;
  }
  return out.str();
}

Mailbox& JudgeMemory::mailbox() noexcept { return *reinterpret_cast<Mailbox*>(base_ + kMailbox); }

std::string find_judge(const std::string& program) {
  const char* path = std::getenv("PATH");
  std::istringstream folders{path == nullptr ? "" : path};
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (std::filesystem::exists(folder + "/" + program)) return folder + "/" + program;
  }
  return {};
}

void judge_by_qemu(JudgeMemory& memory, std::vector<Probe>& probes) {
  ASSERT_NO_FATAL_FAILURE(ask(memory, probes, {}));
  const std::string size = std::to_string(JudgeMemory::kBytes >> 20) + "M";
  // The kernel ends by writing 0 to the debug-exit port, which makes the exit status 1.
  ASSERT_EQ(run({"timeout",
                 "120",
                 "qemu-system-x86_64",
                 "-accel",
                 "tcg",
                 "-cpu",
                 "max,phys-bits=40",
                 "-machine",
                 "pc,memory-backend=m",
                 "-m",
                 size,
                 "-object",
                 "memory-backend-file,id=m,share=on,size=" + size + ",mem-path=" + memory.path(),
                 "-kernel",
                 STRATA_JUDGE_SVM,
                 "-display",
                 "none",
                 "-serial",
                 "none",
                 "-monitor",
                 "none",
                 "-no-reboot",
                 "-device",
                 "isa-debug-exit,iobase=0xf4,iosize=4"}),
            1);
  ASSERT_EQ(memory.mailbox().done, probes.size());
  std::memcpy(probes.data(), memory.mailbox().probes, probes.size() * sizeof(Probe));
}

void judge_by_bochs(JudgeMemory& memory, std::vector<Probe>& probes,
                    const std::vector<MPN>& frames) {
  ASSERT_NO_FATAL_FAILURE(ask(memory, probes, frames));
  const Folder folder;
  const std::string rom = rom_image(memory);
  ASSERT_EQ(rom.size(), kRomBytes) << "the dump is too large";
  store(folder.file("rom"), rom.data(), rom.size());
  const std::string vga(512, '\0');  // it insists on having one
  store(folder.file("vga"), vga.data(), vga.size());
  std::ostringstream rc;
  rc << "config_interface: textconfig\ndisplay_library: rfb, options=\"timeout=0\"\n"
     << "memory: guest=2048, host=256\n"
     << "cpu: model=corei7_icelake_u, ips=50000000, reset_on_triple_fault=0\n"
     << "romimage: file=" << folder.file("rom") << ", address=0x" << std::hex << kRomBase
     << "\nvgaromimage: file=" << folder.file("vga") << "\n"
     << "port_e9_hack: enabled=1\nsound: driver=dummy\nspeaker: enabled=0\npci: enabled=0\n"
     << "plugin_ctrl: unmapped=1, speaker=0, usb_uhci=0\npanic: action=fatal\n"
     << "log: " << folder.file("log") << "\n";
  store(folder.file("rc"), rc.str().data(), rc.str().size());
  store(folder.file("commands"), "c\nq\n", 4);  // Debian's Bochs begins in its debugger
  // It ends by a panic: the shutdown port says no more than that.
  ASSERT_EQ(run({"timeout", "120", "bochs", "-q", "-f", folder.file("rc"), "-rc",
                 folder.file("commands")},
                folder.file("output")),
            1);
  const std::string output = contents(folder.file("output"));
  const std::string mark{reinterpret_cast<const char*>(&kMagic), sizeof kMagic};
  const std::size_t answers = output.find(mark) + mark.size();
  ASSERT_NE(answers, std::string::npos + mark.size()) << output;
  const std::size_t bytes = probes.size() * sizeof(Probe);
  ASSERT_GE(output.size(), answers + bytes + frames.size() * kPageSize) << output.substr(0, 4000);
  std::memcpy(probes.data(), output.data() + answers, bytes);
  for (std::size_t i = 0; i < frames.size(); ++i) {
    std::memcpy(memory.base() + address_of(frames[i]).value(),
                output.data() + answers + bytes + i * kPageSize, kPageSize);
  }
}

}  // namespace strata::judged
