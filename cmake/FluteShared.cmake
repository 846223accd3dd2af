# libflute: the shared library that other programs link, the C ABI and the C++ API and nothing else in its symbol table.
# The model runtime and the program stay out of it.
set(objects)
foreach(part base format quant cpu cuda backend io capi)
  list(APPEND objects $<TARGET_OBJECTS:flute_${part}>)
endforeach()
add_library(flute_shared SHARED ${objects})
add_library(flute::flute ALIAS flute_shared)
set_target_properties(flute_shared PROPERTIES
  OUTPUT_NAME flute EXPORT_NAME flute LINKER_LANGUAGE CXX
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
  LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/flute.map)
target_link_libraries(flute_shared PRIVATE flute_capi)  # for what the objects link in turn
target_link_options(flute_shared PRIVATE -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/flute.map -Wl,-z,defs)
target_include_directories(flute_shared INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                                                  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

install(TARGETS flute_shared EXPORT flute)
install(TARGETS flute_program)
install(DIRECTORY include/flute TYPE INCLUDE)
install(EXPORT flute NAMESPACE flute:: FILE fluteTargets.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/flute)

# The Python package finds its library beside it: one file, of no version (a wheel has no links). Only `pip install .`
# and `cmake --install BUILD --component python` install it there.
install(PROGRAMS $<TARGET_FILE:flute_shared> DESTINATION flute RENAME libflute.so COMPONENT python EXCLUDE_FROM_ALL)

include(CMakePackageConfigHelpers)
write_basic_package_version_file(fluteConfigVersion.cmake COMPATIBILITY SameMinorVersion)
configure_package_config_file(cmake/fluteConfig.cmake.in fluteConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/flute)
file(RELATIVE_PATH FLUTE_PC_TO_PREFIX /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(cmake/flute.pc.in flute.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fluteConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/fluteConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/flute)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/flute.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
