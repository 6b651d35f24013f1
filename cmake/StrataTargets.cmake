# Flags every target shares, and short-hands for libraries and tests.

find_program(STRATA_CCACHE ccache)
if(STRATA_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${STRATA_CCACHE})
endif()

add_library(strata_flags INTERFACE)
target_compile_options(strata_flags INTERFACE -Wall -Wextra -Wconversion -Wshadow)
if(STRATA_WERROR)
  target_compile_options(strata_flags INTERFACE -Werror)
endif()
if(NOT STRATA_SANITIZE)
  # The executable stays below 2 GiB, where docs/address-layout.md puts it: generated code reaches
  # state and helpers with 32-bit displacements. (Sanitizers want to place things themselves.)
  target_compile_options(strata_flags INTERFACE -fno-pie)
  target_link_options(strata_flags INTERFACE -no-pie)
endif()
if(STRATA_SANITIZE)
  target_compile_options(strata_flags INTERFACE -fsanitize=${STRATA_SANITIZE}
                                                -fno-omit-frame-pointer)
  target_link_options(strata_flags INTERFACE -fsanitize=${STRATA_SANITIZE})
endif()

foreach(backend IN LISTS STRATA_BACKENDS)
  if(NOT backend MATCHES "^(shadow|nested)$")
    message(FATAL_ERROR "STRATA_BACKENDS: '${backend}' is not a backend; use shadow and/or nested")
  endif()
endforeach()
if(NOT STRATA_BACKENDS)
  message(FATAL_ERROR "STRATA_BACKENDS is empty; name at least one of shadow, nested")
endif()
foreach(engine IN LISTS STRATA_ENGINES)
  if(NOT engine MATCHES "^(interp|bt|kvm)$")
    message(FATAL_ERROR "STRATA_ENGINES: '${engine}' is not an engine; use interp, bt and/or kvm")
  endif()
endforeach()

# strata_library(NAME SOURCES... DEPENDS targets...): a static library of this folder.
function(strata_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC ${ARG_DEPENDS} PRIVATE strata_flags)
endfunction()

# strata_test(NAME SOURCES... DEPENDS targets...): a GoogleTest binary, each case a ctest test.
function(strata_test name)
  cmake_parse_arguments(ARG "" "PREFIX" "SOURCES;DEPENDS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} strata_flags GTest::gmock GTest::gtest_main)
  gtest_discover_tests(${name} TEST_PREFIX "${ARG_PREFIX}" DISCOVERY_TIMEOUT 120 PROPERTIES TIMEOUT 300 LABELS
                       "${ARG_LABELS}")
endfunction()
