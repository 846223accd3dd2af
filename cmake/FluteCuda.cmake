# FLUTE_CUDA: AUTO builds the CUDA backend where a CUDA compiler is found, ON insists, OFF leaves it out.
# Afterwards FLUTE_HAVE_CUDA says whether it is built.
set(FLUTE_CUDA AUTO CACHE STRING "CUDA backend: AUTO (where it can be built), ON or OFF")
set_property(CACHE FLUTE_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT FLUTE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FLUTE_CUDA: expected AUTO, ON or OFF, found '${FLUTE_CUDA}'")
endif()

set(FLUTE_HAVE_CUDA OFF)
if(NOT FLUTE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # Hopper's own instructions, and what every card from compute capability 8.0 on runs: 80 is also kept as PTX, for
    # cards that are newer than this compiler.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80 90a-real)
    endif()
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25.1 does not know that nvcc 12 has C++20
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    endif()
    find_package(CUDAToolkit 12 QUIET)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12 AND CUDAToolkit_FOUND)
      set(FLUTE_HAVE_CUDA ON)
    endif()
  endif()
  if(FLUTE_CUDA STREQUAL "ON" AND NOT FLUTE_HAVE_CUDA)
    message(FATAL_ERROR "FLUTE_CUDA=ON: expected a CUDA compiler of version 12 or later that works with this C++ "
                        "compiler, found '${CMAKE_CUDA_COMPILER}' ${CMAKE_CUDA_COMPILER_VERSION}")
  endif()
endif()
message(STATUS "CUDA backend: ${FLUTE_HAVE_CUDA}")
