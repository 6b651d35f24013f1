#include "host/own_memory.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace strata::host {
namespace {

TEST(OwnMemory, SeesWhatChangedSinceItWasMade) {
  constexpr std::size_t kBytes = 4U << 20;
  const OwnMemory memory;
  const OwnMemory::Mappings before = memory.mappings("memfd:own-memory-test");
  EXPECT_EQ(before.guest, 0);
  EXPECT_GT(before.binary, 4096);
  EXPECT_GT(before.resident, before.binary);
  EXPECT_GT(memory.page_table_bytes(), 4096);
  const int fd = ::memfd_create("own-memory-test", 0);
  ASSERT_EQ(::ftruncate(fd, kBytes), 0);
  void* at = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ASSERT_NE(at, MAP_FAILED);
  std::memset(at, 1, kBytes);
  const OwnMemory::Mappings after = memory.mappings("memfd:own-memory-test");
  EXPECT_EQ(after.guest, kBytes);
  EXPECT_GE(after.resident, before.resident + kBytes);
  ::munmap(at, kBytes);
  ::close(fd);
}

}  // namespace
}  // namespace strata::host
