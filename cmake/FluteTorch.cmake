# The PyTorch operator of the Python package, libflute_torch.so, on LibTorch's stable ABI: what is built with one PyTorch
# serves 2.10 and every later one.
set(FLUTE_TORCH_INCLUDE "" CACHE PATH "Folder of PyTorch's headers: builds its operator. Empty: none, but under pip those \
of the Python that builds, if it has them (pip install --no-build-isolation .)")
set(include ${FLUTE_TORCH_INCLUDE})
if(SKBUILD AND NOT include)
  execute_process(OUTPUT_VARIABLE include OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND ${Python_EXECUTABLE} -c
    "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] + '/include' if s else '')")
endif()
set(found "no PyTorch")
if(include)
  set(version_file ${include}/torch/headeronly/version.h)
  if(EXISTS ${version_file})
    file(STRINGS ${version_file} version REGEX "#define TORCH_VERSION_(MAJOR|MINOR) [0-9]+")
    string(REGEX REPLACE "[^0-9;]" "" version "${version}")
    string(REPLACE ";" "." version "${version}")
    set(found "PyTorch ${version}")
  endif()
  if(FLUTE_TORCH_INCLUDE AND (NOT version OR version VERSION_LESS 2.10))
    message(FATAL_ERROR "FLUTE_TORCH_INCLUDE: expected the headers of PyTorch 2.10 or later, found ${found} in ${include}")
  endif()
endif()
message(STATUS "PyTorch operator: ${found}")

add_custom_target(flute_python DEPENDS flute_shared)  # what the wheel holds
if(version VERSION_GREATER_EQUAL 2.10)
  file(GLOB operator CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/python/operator/*.cpp)
  add_library(flute_torch SHARED ${operator})
  # Both are there when Python loads it: `import flute` and `import torch` have loaded them, wherever they are.
  target_link_libraries(flute_torch PRIVATE flute_shared flute_options ${include}/../lib/libtorch_cpu.so ${CMAKE_DL_LIBS})
  target_include_directories(flute_torch SYSTEM PRIVATE ${include})
  target_compile_definitions(flute_torch PRIVATE TORCH_TARGET_VERSION=0x020a000000000000ULL)  # 2.10
  set_target_properties(flute_torch PROPERTIES CXX_VISIBILITY_PRESET hidden SKIP_BUILD_RPATH ON)
  add_dependencies(flute_python flute_torch)
  install(PROGRAMS $<TARGET_FILE:flute_torch> DESTINATION flute COMPONENT python EXCLUDE_FROM_ALL)
endif()
