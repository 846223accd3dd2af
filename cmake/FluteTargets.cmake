# How every target of this project is compiled, and the two helpers that the CMakeLists of src/ and tests/ use.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(hwy REQUIRED)
find_package(nlohmann_json REQUIRED)

add_library(flute_options INTERFACE)
target_include_directories(flute_options INTERFACE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
# Products and sums are rounded one by one unless the code asks for a fused multiply-add: results must not depend on
# what the compiler finds to contract.
target_compile_options(flute_options INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Wpedantic -Wshadow
                                               -Wconversion -Wno-sign-conversion -ffp-contract=off>)
# g++ 12 sees overlapping copies in every `"text" + string` (GCC bug 105329).
target_compile_options(flute_options INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)
# The host code that nvcc makes of a .cu file keeps to fewer warnings than ours. A kernel that spills is a warning, too.
target_compile_options(flute_options INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wshadow -Xptxas=-warn-spills>)
if(FLUTE_WERROR)
  target_compile_options(flute_options INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-Werror>
                                                 $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings -Xcompiler=-Werror>)
endif()
if(FLUTE_SANITIZE)
  target_compile_options(flute_options INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=address,undefined
                                                 -fno-sanitize-recover=all -fno-omit-frame-pointer>)
  # Instrumented, g++ 12 warns of what cannot happen (in std::regex, in one-lane vectors). The release build, where
  # warnings are errors, compiles the same code.
  target_compile_options(flute_options INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-error>)
  target_link_options(flute_options INTERFACE -fsanitize=address,undefined)
endif()
if(FLUTE_FUZZ)
  target_compile_options(flute_options INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=fuzzer-no-link>)
endif()

# flute_library(name [dependency...]): a static library of every .cpp in this folder.
function(flute_library name)
  file(GLOB sources CONFIGURE_DEPENDS *.cpp)
  add_library(${name} STATIC ${sources})
  target_link_libraries(${name} PUBLIC flute_options fmt::fmt ${ARGN})
endfunction()

# flute_test(name dependency...): every test_*.cpp in this folder as one GoogleTest program, its tests known to ctest.
function(flute_test name)
  file(GLOB sources CONFIGURE_DEPENDS test_*.cpp)
  add_executable(${name} ${sources})
  target_link_libraries(${name} PRIVATE ${ARGN} flute_options GTest::gtest GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE FLUTE_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300)
endfunction()
